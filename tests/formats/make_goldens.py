#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reference outputs for every format, by torch and transformers.

usage: make_goldens.py CHECKPOINTS OUT

CHECKPOINTS: what make_checkpoints.py wrote. For each of them: the weights are
dequantised here, in torch, from the definitions of the formats (nothing of
make_checkpoints.py or of the product is used), run in float32 (TF32 off) by
transformers' Qwen3_5MoeForCausalLM, and OUT/SOURCE.FORMAT.safetensors gets, for
each prompt NAME, `NAME.logits` (the last rows of the prompt), `NAME.greedy_ids`
and `NAME.greedy_gap` (logit distance of the two best, per step); its metadata
hold the SHA-256 of the checkpoint. OUT/prompts.json: the prompts.
"""
import json
import pathlib
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

ROWS, STEPS = 2, 64
GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


def prompts_of(source):
    if source == "random":
        return {"walk": [(i * i * 7 + i * 31 + 3) % 512 for i in range(70)]}
    known = {p["name"]: p["ids"] for p in json.loads((GOLDEN / "prompts.json").read_text())}
    return {name: known[name] for name in ("story", "len63")}


def load(folder):
    out = {}
    with safe_open(folder / "model.safetensors", "pt") as f:
        for name in f.keys():
            out[name] = f.get_tensor(name)
    return out


def dequantise_fp8(t):
    out = {}
    for name, w in t.items():
        if name.endswith("_scale_inv"):
            continue
        scale = t.get(name + "_scale_inv")
        if scale is not None:
            rows, cols = w.shape
            grown = scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)
            w = w.to(torch.float32) * grown[:rows, :cols]
        out[name] = w
    return out


def dequantise_gptq(t):
    out = {}
    for name, w in t.items():
        if name.endswith((".qzeros", ".g_idx", ".scales")):
            continue
        if not name.endswith(".qweight"):
            out[name] = w
            continue
        at = name[:-len("qweight")]
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        # [K/8, 8, N] -> [K, N], lowest nibble first.
        codes = ((w[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, w.shape[1])
        zeros = ((t[at + "qzeros"][:, :, None] >> shifts) & 15).reshape(
            t[at + "qzeros"].shape[0], -1) + 1
        group = t[at + "g_idx"].long()
        values = (codes - zeros[group]).float() * t[at + "scales"].float()[group]
        out[at + "weight"] = values.T.contiguous()
    return out


def dequantise_mlx(t, quantisation):
    out = {}
    for name, w in t.items():
        if name.endswith((".scales", ".biases")):
            continue
        module = name.removesuffix(".weight")
        if module + ".scales" in t:
            form = quantisation.get(module, quantisation)
            bits, group = form["bits"], form["group_size"]
            scale, bias = t[module + ".scales"].float(), t[module + ".biases"].float()
            # The words of a row as one stream of bits, lowest first.
            words = w.view(torch.int32)
            stream = (words[..., None] >> torch.arange(32, dtype=torch.int32)) & 1
            stream = stream.reshape(*w.shape[:-1], -1, bits)
            codes = (stream << torch.arange(bits, dtype=torch.int32)).sum(-1)
            codes = codes.reshape(*scale.shape, group).float()
            w = (codes * scale[..., None] + bias[..., None]).reshape(*w.shape[:-1], -1)
        if name.endswith("conv1d.weight"):
            w = w.transpose(1, 2).contiguous()
        is_norm = name.endswith("norm.weight") and "linear_attn" not in name
        out[name] = w.float() - 1 if is_norm else w
    return out


def to_hf(t):
    """Names of Qwen3_5MoeForCausalLM; experts fused."""
    out, experts = {}, {}
    for name, w in t.items():
        name = name.replace("language_model.model.", "model.").replace(
            "model.language_model.", "model.").replace("language_model.lm_head", "lm_head")
        if ".switch_mlp." in name or ".mlp.experts." in name and name.endswith(".weight"):
            at, rest = name.split(".switch_mlp." if ".switch_mlp." in name else ".experts.")
            if ".switch_mlp." in name:
                part = rest.split(".")[0]
                experts.setdefault(at, {})[part] = list(w)
            else:
                index, part, _ = rest.split(".")
                experts.setdefault(at, {}).setdefault(part, {})[int(index)] = w
        else:
            out[name] = w
    for at, parts in experts.items():
        listed = {k: [v[i] for i in range(len(v))] for k, v in parts.items()}
        out[at + ".experts.gate_up_proj"] = torch.stack(
            [torch.cat([g, u]) for g, u in zip(listed["gate_proj"], listed["up_proj"])])
        out[at + ".experts.down_proj"] = torch.stack(listed["down_proj"])
    return {name: w.float() for name, w in out.items()}


def model_of(folder, device):
    config = json.loads((folder / "config.json").read_text())
    tensors = load(folder)
    method = config.get("quantization_config", {})
    if "quantization" in config:
        tensors = dequantise_mlx(tensors, config["quantization"])
    elif method.get("quant_method") == "fp8":
        tensors = dequantise_fp8(tensors)
    elif method.get("quant_method") == "gptq":
        tensors = dequantise_gptq(tensors)
    text = Qwen3_5MoeTextConfig(**config["text_config"])
    text.dtype = torch.float32
    model = Qwen3_5MoeForCausalLM(text).to(torch.float32)
    missing, surplus = model.load_state_dict(to_hf(tensors), strict=False)
    assert not missing and not surplus, (missing, surplus)
    return model.to(device).eval()


@torch.no_grad()
def run(model, ids, device):
    out = model(torch.tensor([ids], device=device), use_cache=True)
    rows = out.logits[0, -ROWS:].float()
    greedy, gaps = [], []
    logits = rows[-1]
    for _ in range(STEPS):
        best = logits.topk(2)
        greedy.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        out = model(torch.tensor([[greedy[-1]]], device=device),
                    past_key_values=out.past_key_values, use_cache=True)
        logits = out.logits[0, -1].float()
    return {"logits": rows.cpu().contiguous(),
            "greedy_ids": torch.tensor(greedy, dtype=torch.int32),
            "greedy_gap": torch.tensor(gaps, dtype=torch.float32)}


def main():
    checkpoints, out = map(pathlib.Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prompts = {}
    for folder in sorted(p.parent for p in checkpoints.glob("*/*/config.json")):
        source, name = folder.parent.name, folder.name
        prompts[source] = prompts_of(source)
        model, tensors = model_of(folder, device), {}
        for prompt, ids in prompts[source].items():
            for key, value in run(model, ids, device).items():
                tensors[f"{prompt}.{key}"] = value
        digest = (folder / "sha256").read_text().strip()
        save_file(tensors, out / f"{source}.{name}.safetensors", {"sha256": digest})
        print(source, name, {k: v.tolist()[:6] for k, v in tensors.items() if "ids" in k},
              flush=True)
    (out / "prompts.json").write_text(json.dumps(prompts) + "\n")


main()
