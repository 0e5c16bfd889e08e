#!/usr/bin/env python3
"""Crops the reference outputs of transformers to what the tests need.

usage: crop.py FROM TO      (FROM: the full set, TO: tests/golden)

Keeps the float32 references: all rows of the short prompts, the last ROWS rows
of the others, full GDN states where the set has them. Values are copied, never
recomputed. How the full set was made stands in README.md beside this file.
"""
import json
import pathlib
import shutil
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "formats"))
from safetensors_file import entries  # noqa: E402

ROWS = {"add": 16, "story": 16, "len63": 16, "len64": 16, "len129": 16, "multi_turn": 16, "len65": 16}
# Tensors whose rows are positions: (name, axis of the positions).
POSITIONS = {"logits": 0, "hidden": 1, "final_hidden": 0,
             "router_index": 1, "router_weight": 1}


def crop(data, shape, axis, rows):
    outer, inner = 1, len(data)
    for s in shape[:axis]:
        outer *= s
    inner = len(data) // outer // shape[axis]
    step = shape[axis] * inner
    cut = (shape[axis] - rows) * inner
    return b"".join(data[i * step + cut:(i + 1) * step] for i in range(outer))


def main():
    source, target = map(pathlib.Path, sys.argv[1:3])
    target.mkdir(exist_ok=True)
    prompts = json.loads((source / "prompts.json").read_text())
    for p in prompts:
        p.pop("bf16")
        name, rows = p["name"], ROWS.get(p["name"], 1 << 30)
        tensors, kept = [], None
        for key, dtype, shape, data in entries(source / f"{name}.fp32.safetensors"):
            if key in POSITIONS and shape[POSITIONS[key]] > rows:
                axis = POSITIONS[key]
                data = crop(data, shape, axis, rows)
                shape = shape[:axis] + [rows] + shape[axis + 1:]
            if key == "logits":
                kept = shape[0]
            tensors.append((key, dtype, shape, data))
        p["fp32"]["logits_from"] = len(p["ids"]) - kept
        header, offset = {}, 0
        for key, dtype, shape, data in tensors:
            header[key] = {"dtype": dtype, "shape": shape,
                           "data_offsets": [offset, offset + len(data)]}
            offset += len(data)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(target / f"{name}.fp32.safetensors", "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            f.write(b"".join(t[3] for t in tensors))
    (target / "prompts.json").write_text(
        json.dumps(prompts, ensure_ascii=False, indent=1) + "\n")
    for name in ("tokenizer.jsonl", "chat_template.jsonl"):
        shutil.copy(source / name, target / name)


main()
