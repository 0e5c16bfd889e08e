"""A checkpoint with large tensors, made when it is needed."""
import json
import re
import shutil
import sys

import numpy as np

from processes import MODEL, ROOT

sys.path.insert(0, str(ROOT / "tests/formats"))
import safetensors_file  # noqa: E402


def wide_model(folder, layers, intermediate):
    """The embedded model with fewer layers and wide random experts: large
    fused tensors."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json",
                 "chat_template.jinja", "generation_config.json"):
        shutil.copy(MODEL / name, folder / name)
    config = json.loads((MODEL / "config.json").read_text())
    text = config["text_config"]
    text.update(num_hidden_layers=layers, moe_intermediate_size=intermediate,
                layer_types=text["layer_types"][:layers],
                mtp_num_hidden_layers=0)
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(1)
    tensors = {}
    for name, tensor in safetensors_file.read(MODEL).items():
        layer = re.search(r"layers\.(\d+)\.", name)
        if name.startswith("mtp.") or (layer and int(layer[1]) >= layers):
            continue
        shape = {"gate_up_proj": (16, 2 * intermediate, 256),
                 "down_proj": (16, 256, intermediate)}.get(
                     name.rsplit(".", 1)[-1] if ".experts." in name else "")
        if shape:
            # bf16 numbers of about +-0.01
            bits = random.integers(0x3C00, 0x3C40, shape, dtype=np.uint16)
            sign = random.integers(0, 2, shape, dtype=np.uint16) << 15
            tensor = ("BF16", bits | sign)
        tensors[name] = tensor
    safetensors_file.write(folder / "model.safetensors", tensors)
    return folder
