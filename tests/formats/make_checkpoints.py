#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes small checkpoints in every format that Conclave loads.

usage: make_checkpoints.py OUT [SOURCE/FORMAT ...]

Two sources: `tiny`, the embedded model, and `random`, random weights of
intermediate size 256 (several groups and blocks per row). OUT/SOURCE/FORMAT
gets config.json and model.safetensors (tiny: tokenizer too); the same bytes on
every machine, which OUT/SOURCE/FORMAT/sha256 tells. numpy is all it needs.
"""
import copy
import hashlib
import json
import pathlib
import re
import shutil
import sys

import numpy as np

import safetensors_file as st

TINY = pathlib.Path(__file__).resolve().parents[2] / "deploy/models/qwen3.5-moe-tiny"
MLX_TOP = "language_model."
HF_PREFIX = "model.language_model."

# (bits, group) by module; None: not quantised.
MIXED = [
    (r"embed_tokens$", None),
    (r"lm_head$", (6, 32)),
    (r"mlp\.(gate|shared_expert_gate)$", (8, 64)),
    (r"layers\.1\.mlp\.switch_mlp\.up_proj$", (8, 64)),
    (r"layers\.[02]\.mlp\.switch_mlp\.down_proj$", (6, 64)),
    (r"layers\.3\.self_attn\.v_proj$", (5, 32)),
]


class Random:
    """Uniform numbers from the frozen generator of numpy."""

    def __init__(self, seed):
        self.state = np.random.RandomState(seed)

    def uniform(self, shape, half_width):
        whole = self.state.randint(-(1 << 20), 1 << 20, size=shape)
        return (whole * (half_width / (1 << 20))).astype(np.float32)


def random_config():
    config = json.loads((TINY / "config.json").read_text())
    text = config["text_config"]
    text.update(hidden_size=256, num_hidden_layers=4, layer_types=text["layer_types"][:4],
                head_dim=64, num_attention_heads=4, num_key_value_heads=2,
                linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=64,
                linear_value_head_dim=64, num_experts=8, num_experts_per_tok=2,
                moe_intermediate_size=256, shared_expert_intermediate_size=256,
                vocab_size=512, eos_token_id=0, mtp_num_hidden_layers=0)
    text["rope_parameters"]["mrope_section"] = [3, 3, 2]
    for key in ("image_token_id", "video_token_id", "vision_end_token_id", "vision_start_token_id"):
        config.pop(key)
    return config


def random_tensors(config):
    c, rng, out = config["text_config"], Random(20261123), {}
    h, i, e = c["hidden_size"], c["moe_intermediate_size"], c["num_experts"]
    values = c["linear_num_value_heads"] * c["linear_value_head_dim"]
    channels = values + 2 * c["linear_num_key_heads"] * c["linear_key_head_dim"]
    query = c["num_attention_heads"] * c["head_dim"]
    kv = c["num_key_value_heads"] * c["head_dim"]

    def matrix(name, *shape):
        out[name] = rng.uniform(shape, (3.0 / shape[-1]) ** 0.5)

    def vector(name, size, half_width=0.2, middle=0.0):
        out[name] = rng.uniform((size,), half_width) + np.float32(middle)

    matrix("embed_tokens.weight", c["vocab_size"], h)
    out["embed_tokens.weight"] *= np.float32(h ** 0.5)
    matrix("lm_head.weight", c["vocab_size"], h)
    vector("norm.weight", h)
    for n, kind in enumerate(c["layer_types"]):
        at = f"layers.{n}."
        vector(at + "input_layernorm.weight", h)
        vector(at + "post_attention_layernorm.weight", h)
        if kind == "full_attention":
            at += "self_attn."
            matrix(at + "q_proj.weight", 2 * query, h)
            matrix(at + "k_proj.weight", kv, h)
            matrix(at + "v_proj.weight", kv, h)
            matrix(at + "o_proj.weight", h, query)
            vector(at + "q_norm.weight", c["head_dim"])
            vector(at + "k_norm.weight", c["head_dim"])
        else:
            at += "linear_attn."
            heads = c["linear_num_value_heads"]
            matrix(at + "in_proj_qkv.weight", channels, h)
            matrix(at + "in_proj_z.weight", values, h)
            matrix(at + "in_proj_b.weight", heads, h)
            matrix(at + "in_proj_a.weight", heads, h)
            matrix(at + "out_proj.weight", h, values)
            matrix(at + "conv1d.weight", channels, 1, c["linear_conv_kernel_dim"])
            vector(at + "A_log", heads, 1.0, 1.0)
            vector(at + "dt_bias", heads, 1.0, -2.0)
            vector(at + "norm.weight", c["linear_value_head_dim"], 0.2, 1.0)
        at = f"layers.{n}.mlp."
        matrix(at + "gate.weight", e, h)
        out[at + "gate.weight"] *= np.float32(4)
        for part in ("gate_proj", "up_proj"):
            matrix(at + f"shared_expert.{part}.weight", i, h)
        matrix(at + "shared_expert.down_proj.weight", h, i)
        matrix(at + "shared_expert_gate.weight", 1, h)
        matrix(at + "experts.gate_up_proj", e, 2 * i, h)
        matrix(at + "experts.down_proj", e, h, i)
    # As checkpoints are: bf16, but for two kinds of vectors.
    return {name: value if is_f32(name) else st.bf16_to_f32(st.f32_to_bf16(value))
            for name, value in out.items()}


def is_f32(name):
    return name.endswith("A_log") or name.endswith("linear_attn.norm.weight")


def tiny_tensors():
    out = {}
    for name, tensor in st.read(TINY).items():
        name = re.sub(r"^model\.(language_model\.)?", "", name)
        if not name.startswith("mtp."):
            out[name] = st.floats(tensor)
    return out


def per_expert(tensors):
    """Fused experts taken apart, as FP8 and GPTQ checkpoints have them."""
    out = {}
    for name, value in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            width = value.shape[1] // 2
            for e, both in enumerate(value):
                at = name[:-len("gate_up_proj")] + f"{e}."
                out[at + "gate_proj.weight"] = both[:width]
                out[at + "up_proj.weight"] = both[width:]
        elif name.endswith("experts.down_proj"):
            for e, down in enumerate(value):
                out[name[:-len("down_proj")] + f"{e}.down_proj.weight"] = down
        else:
            out[name] = value
    return out


def hf_name(name):
    return name if name.startswith("lm_head.") else HF_PREFIX + name


def plain(name, value, f32=True):
    if f32 and is_f32(name):
        return "F32", value.astype(np.float32)
    return "BF16", st.f32_to_bf16(value)


def write_bf16(tensors, config):
    """Per-expert experts, A_log and GDN norm in BF16 (Qwen3.6)."""
    return {hf_name(n): plain(n, v, f32=False) for n, v in per_expert(tensors).items()}, config


def e4m3_values():
    """The 127 magnitudes of e4m3, ascending with their code."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    return np.where(exponent == 0, mantissa * 2.0 ** -9,
                    (8 + mantissa) * 2.0 ** (exponent - 10.0)).astype(np.float32)


def to_e4m3(values):
    """Nearest, ties to the even code; magnitudes of at most 448."""
    table = e4m3_values()
    magnitude = np.abs(values)
    upper = np.clip(np.searchsorted(table, magnitude), 1, 126)
    below, above = magnitude - table[upper - 1], table[upper] - magnitude
    down = (below < above) | ((below == above) & (upper % 2 == 1))
    code = np.where(down, upper - 1, upper).astype(np.uint8)
    return code | np.where(np.signbit(values), 0x80, 0).astype(np.uint8)


FP8_MODULES = re.compile(r"(experts\.\d+|shared_expert)\.\w+_proj\.weight$|"
                         r"linear_attn\.(in_proj_qkv|in_proj_z|out_proj)\.weight$|"
                         r"self_attn\.[qkvo]_proj\.weight$")


def write_fp8(tensors, config):
    out = {}
    for name, value in per_expert(tensors).items():
        if not FP8_MODULES.search(name):
            out[hf_name(name)] = plain(name, value, f32=False)
            continue
        rows, cols = value.shape
        blocks = (-(-rows // 128), -(-cols // 128))
        padded = np.zeros((blocks[0] * 128, blocks[1] * 128), np.float32)
        padded[:rows, :cols] = value
        tiles = padded.reshape(blocks[0], 128, blocks[1], 128)
        scale = np.abs(tiles).max(axis=(1, 3)) / np.float32(448)
        # Rounded up, so that nothing is beyond 448.
        bits = np.maximum(scale, np.float32(2.0 ** -60)).view(np.uint32)
        scale_bits = ((bits + 0xFFFF) >> 16).astype(np.uint16)
        scale = st.bf16_to_f32(scale_bits)
        codes = to_e4m3(tiles / scale[:, None, :, None])
        out[hf_name(name)] = "F8_E4M3", codes.reshape(padded.shape)[:rows, :cols]
        out[hf_name(name) + "_scale_inv"] = "BF16", scale_bits
    config = copy.deepcopy(config)
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3",
                                     "activation_scheme": "dynamic",
                                     "weight_block_size": [128, 128]}
    return out, config


def write_gptq(tensors, config):
    group = min(128, config["text_config"]["moe_intermediate_size"])
    out = {}
    for name, value in per_expert(tensors).items():
        if ".experts." not in name:
            out[hf_name(name)] = plain(name, value)
            continue
        rows, cols = value.shape
        grouped = value.reshape(rows, cols // group, group)
        scale = (np.abs(grouped).max(axis=2) / np.float32(7.5)).astype(np.float16)
        codes = np.rint(grouped / scale.astype(np.float32)[:, :, None]) + 8
        codes = np.clip(codes, 0, 15).astype(np.uint32).reshape(rows, cols)
        words = np.zeros((cols // 8, rows), np.uint32)
        for k in range(8):
            words |= codes[:, k::8].T << np.uint32(4 * k)
        at = hf_name(name)[:-len("weight")]
        out[at + "qweight"] = "I32", words.view(np.int32)
        out[at + "qzeros"] = "I32", np.full((cols // group, rows // 8), 0x77777777, np.int32)
        out[at + "scales"] = "F16", np.ascontiguousarray(scale.T)
        out[at + "g_idx"] = "I32", (np.arange(cols) // group).astype(np.int32)
    config = copy.deepcopy(config)
    config["quantization_config"] = {
        "quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": True,
        "dynamic": {"-:.*attn.*": {}, "-:.*shared_expert.*": {}}}
    return out, config


def affine(value, bits, group):
    """MLX's affine codes: (codes as U32 words, scales, biases)."""
    levels = np.float32((1 << bits) - 1)
    grouped = value.reshape(value.shape[:-1] + (-1, group))
    high, low = grouped.max(axis=-1), grouped.min(axis=-1)
    low_edge = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / levels, np.float32(1e-7))
    scale = np.where(low_edge, scale, -scale)
    edge = np.where(low_edge, low, high)
    steps = np.rint(edge / scale)
    scale = np.where(steps != 0, edge / np.where(steps != 0, steps, 1), scale)
    bias = np.where(steps != 0, edge, 0).astype(np.float32)
    codes = np.rint((grouped - bias[..., None]) / scale[..., None].astype(np.float32))
    codes = np.clip(codes, 0, levels).astype(np.uint8).reshape(value.shape)
    stream = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    packed = np.packbits(stream.reshape(value.shape[:-1] + (-1,)), axis=-1, bitorder="little")
    return packed.view(np.uint32), st.f32_to_bf16(scale), st.f32_to_bf16(bias)


NORMS = re.compile(r"(layernorm|_norm|^norm)\.weight$")


def mlx_tensors(tensors):
    """MLX's layout: experts by projection, folded norms, conv1d transposed."""
    for name, value in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            at, width = name.replace("experts.gate_up_proj", "switch_mlp."), value.shape[1] // 2
            yield at + "gate_proj.weight", value[:, :width]
            yield at + "up_proj.weight", value[:, width:]
        elif name.endswith("experts.down_proj"):
            yield name.replace("experts.down_proj", "switch_mlp.down_proj.weight"), value
        elif name.endswith("conv1d.weight"):
            yield name, np.ascontiguousarray(value.transpose(0, 2, 1))
        elif NORMS.search(name) and "linear_attn" not in name:
            yield name, value + np.float32(1)
        else:
            yield name, value


def write_mlx(bits, modules=()):
    def write(tensors, config):
        quantisation = {"group_size": 64, "bits": bits, "mode": "affine"}
        out = {}
        for name, value in mlx_tensors(tensors):
            full = MLX_TOP + ("" if name.startswith("lm_head") else "model.") + name
            module = full[:-len(".weight")]
            is_linear = name.endswith(".weight") and value.ndim >= 2 and "conv1d" not in name
            form = (bits, 64) if is_linear else None
            for pattern, own in modules:
                if not re.search(pattern, module):
                    continue
                form = own
                quantisation[module] = own and {"bits": own[0], "group_size": own[1]}
                if own is None:
                    quantisation[module] = False
            if form is None:
                out[full] = plain(name, value)
                continue
            words, scales, biases = affine(value, *form)
            out[full] = "U32", words
            out[module + ".scales"] = "BF16", scales
            out[module + ".biases"] = "BF16", biases
        config = copy.deepcopy(config)
        config["quantization"] = config["quantization_config"] = quantisation
        return out, config
    return write


FORMATS = {
    "bf16-per-expert": write_bf16,
    "fp8": write_fp8,
    "gptq-int4": write_gptq,
    "mlx3": write_mlx(3),
    "mlx4": write_mlx(4),
    "mlx5": write_mlx(5),
    "mlx6": write_mlx(6),
    "mlx8": write_mlx(8),
    "mlx-mixed": write_mlx(4, MIXED),
}
SOURCES = ("tiny", "random")


def source(name):
    if name == "tiny":
        config = json.loads((TINY / "config.json").read_text())
        config["text_config"]["mtp_num_hidden_layers"] = 0
        return tiny_tensors(), config
    config = random_config()
    return random_tensors(config), config


def make(out, wanted):
    for name in SOURCES:
        formats = [f for f in FORMATS if f"{name}/{f}" in wanted]
        if not formats:
            continue
        tensors, config = source(name)
        for f in formats:
            folder = out / name / f
            folder.mkdir(parents=True, exist_ok=True)
            written, own_config = FORMATS[f](tensors, config)
            (folder / "config.json").write_text(json.dumps(own_config, indent=1, sort_keys=True))
            st.write(folder / "model.safetensors", written)
            if name == "tiny":
                for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json",
                             "chat_template.jinja"):
                    shutil.copy(TINY / file, folder / file)
            digest = hashlib.sha256()
            for file in ("config.json", "model.safetensors"):
                digest.update((folder / file).read_bytes())
            (folder / "sha256").write_text(digest.hexdigest() + "\n")


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    everything = [f"{s}/{f}" for s in SOURCES for f in FORMATS]
    wanted = sys.argv[2:] or everything
    unknown = set(wanted) - set(everything)
    if unknown:
        sys.exit(f"make_checkpoints.py: unknown {sorted(unknown)}; known: {everything}")
    make(pathlib.Path(sys.argv[1]), set(wanted))


if __name__ == "__main__":
    main()
