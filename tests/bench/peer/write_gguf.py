#!/usr/bin/env python3
"""Random weights in the shape of a checkpoint's config.json, as a GGUF file
that llama.cpp loads: the peer of a measurement, not a model that says anything.

usage: write_gguf.py FOLDER_OF_CONFIG (q4_0|q8_0) OUT.gguf

Every matrix takes the format except the router and the convolution, which
llama-quantize keeps in float32. Needs the PyPI packages gguf and numpy."""
import json
import pathlib
import sys

import gguf
import numpy as np

TYPES = {"q4_0": gguf.GGMLQuantizationType.Q4_0,
         "q8_0": gguf.GGMLQuantizationType.Q8_0}


class Writer:
    def __init__(self, path, kind):
        self.gguf = gguf.GGUFWriter(path, "qwen35moe")
        self.type = TYPES[kind]
        self.random = np.random.default_rng(1)

    def matrix(self, name, *shape):
        values = self.random.standard_normal(shape, dtype=np.float32)
        values /= np.sqrt(shape[-1])
        self.gguf.add_tensor(name, gguf.quants.quantize(values, self.type),
                             raw_dtype=self.type)

    def floats(self, name, *shape, value=None):
        values = (np.full(shape, value, np.float32) if value is not None else
                  self.random.standard_normal(shape, dtype=np.float32) /
                  np.float32(np.sqrt(shape[-1])))
        self.gguf.add_tensor(name, values)


def metadata(g, c):
    value_dim = c["linear_num_value_heads"] * c["linear_value_head_dim"]
    rotary = c["head_dim"] // 4
    g.add_block_count(c["num_hidden_layers"])
    g.add_context_length(4096)
    g.add_embedding_length(c["hidden_size"])
    g.add_head_count(c["num_attention_heads"])
    g.add_head_count_kv(c["num_key_value_heads"])
    g.add_key_length(c["head_dim"])
    g.add_value_length(c["head_dim"])
    g.add_layer_norm_rms_eps(1e-6)
    g.add_rope_dimension_count(rotary)
    g.add_rope_dimension_sections([rotary // 2, 0, 0, 0])
    g.add_rope_freq_base(1e7)
    g.add_expert_count(c["num_experts"])
    g.add_expert_used_count(c["num_experts_per_tok"])
    g.add_expert_feed_forward_length(c["moe_intermediate_size"])
    g.add_expert_shared_feed_forward_length(
        c["shared_expert_intermediate_size"])
    g.add_ssm_conv_kernel(c["linear_conv_kernel_dim"])
    g.add_ssm_state_size(c["linear_key_head_dim"])
    g.add_ssm_group_count(c["linear_num_key_heads"])
    g.add_ssm_time_step_rank(c["linear_num_value_heads"])
    g.add_ssm_inner_size(value_dim)
    g.add_full_attention_interval(c["full_attention_interval"])
    g.add_tokenizer_model("none")
    g.add_vocab_size(c["vocab_size"])


def attention(w, at, c):
    hidden, head = c["hidden_size"], c["head_dim"]
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    w.matrix(at + "attn_q.weight", 2 * heads * head, hidden)
    w.matrix(at + "attn_k.weight", kv * head, hidden)
    w.matrix(at + "attn_v.weight", kv * head, hidden)
    w.matrix(at + "attn_output.weight", hidden, heads * head)
    w.floats(at + "attn_q_norm.weight", head, value=1)
    w.floats(at + "attn_k_norm.weight", head, value=1)


def delta_net(w, at, c):
    hidden, heads = c["hidden_size"], c["linear_num_value_heads"]
    value = heads * c["linear_value_head_dim"]
    channels = value + (2 * c["linear_num_key_heads"] *
                        c["linear_key_head_dim"])
    w.matrix(at + "attn_qkv.weight", channels, hidden)
    w.matrix(at + "attn_gate.weight", value, hidden)
    w.floats(at + "ssm_conv1d.weight", channels, c["linear_conv_kernel_dim"])
    w.floats(at + "ssm_dt.bias", heads)
    w.floats(at + "ssm_a", heads, value=-1)
    w.matrix(at + "ssm_beta.weight", heads, hidden)
    w.matrix(at + "ssm_alpha.weight", heads, hidden)
    w.floats(at + "ssm_norm.weight", c["linear_value_head_dim"], value=1)
    w.matrix(at + "ssm_out.weight", hidden, value)


def experts(w, at, c):
    hidden, count = c["hidden_size"], c["num_experts"]
    width, shared = (c["moe_intermediate_size"],
                     c["shared_expert_intermediate_size"])
    w.floats(at + "ffn_gate_inp.weight", count, hidden)
    w.matrix(at + "ffn_gate_exps.weight", count, width, hidden)
    w.matrix(at + "ffn_up_exps.weight", count, width, hidden)
    w.matrix(at + "ffn_down_exps.weight", count, hidden, width)
    w.floats(at + "ffn_gate_inp_shexp.weight", hidden)
    w.matrix(at + "ffn_gate_shexp.weight", shared, hidden)
    w.matrix(at + "ffn_up_shexp.weight", shared, hidden)
    w.matrix(at + "ffn_down_shexp.weight", hidden, shared)


def main(folder, kind, out):
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    config = config["text_config"]
    w = Writer(out, kind)
    metadata(w.gguf, config)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    w.matrix("token_embd.weight", vocab, hidden)
    w.floats("output_norm.weight", hidden, value=1)
    w.matrix("output.weight", vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"blk.{layer}."
        w.floats(at + "attn_norm.weight", hidden, value=1)
        w.floats(at + "post_attention_norm.weight", hidden, value=1)
        full = (layer + 1) % config["full_attention_interval"] == 0
        (attention if full else delta_net)(w, at, config)
        experts(w, at, config)
    w.gguf.write_header_to_file()
    w.gguf.write_kv_data_to_file()
    w.gguf.write_tensors_to_file()
    w.gguf.close()


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[2] not in TYPES:
        sys.exit(__doc__)
    main(*sys.argv[1:])
