"""conclave quantize, read by the MLX package and by conclave."""
import json
import pathlib
import sys

import mlx.core as mx
import numpy as np
import pytest

from processes import MODEL, ROOT
from test_cli import run

sys.path.insert(0, str(ROOT / "tests/formats"))
import safetensors_file  # noqa: E402


@pytest.fixture(scope="module")
def source():
    return {name: safetensors_file.floats(tensor)
            for name, tensor in safetensors_file.read(MODEL).items()}


def quantise(folder, form):
    out = folder / form
    reply = run("quantize", "--model", MODEL, "--to", form, "--out", out)
    assert reply.returncode == 0, reply.stderr
    assert "GB of weights" in reply.stdout
    return out


def mlx_tensors(out):
    index = json.loads((out / "model.safetensors.index.json").read_text())
    tensors = {}
    for file in sorted(set(index["weight_map"].values())):
        tensors.update(mx.load(str(out / file)))
    assert set(tensors) == set(index["weight_map"])
    return tensors


def dequantised(tensors, config, module):
    own = config.get(module, config)
    return np.array(mx.dequantize(
        tensors[module + ".weight"], tensors[module + ".scales"],
        tensors[module + ".biases"], own["group_size"], own["bits"]).astype(mx.float32))


def apart(a, b):
    assert a.shape == b.shape
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("form,bits,limit", [("mlx4", 4, 0.12), ("mlx8", 8, 0.01)])
def test_mlx_reads_the_result(tmp_path, source, form, bits, limit):
    out = quantise(tmp_path, form)
    config = json.loads((out / "config.json").read_text())["quantization"]
    assert config["bits"] == bits and config["group_size"] == 64
    tensors = mlx_tensors(out)
    at = "language_model.model.layers.3."
    ours = "model.language_model.layers.3."
    both = source[ours + "mlp.experts.gate_up_proj"]
    width = both.shape[1] // 2
    expected = {
        at + "mlp.switch_mlp.gate_proj": both[:, :width],
        at + "mlp.switch_mlp.up_proj": both[:, width:],
        at + "mlp.switch_mlp.down_proj": source[ours + "mlp.experts.down_proj"],
        at + "self_attn.q_proj": source[ours + "self_attn.q_proj.weight"],
        at + "mlp.gate": source[ours + "mlp.gate.weight"],
        "language_model.lm_head": source["lm_head.weight"],
        "language_model.model.embed_tokens": source["model.language_model.embed_tokens.weight"],
    }
    for module, values in expected.items():
        assert apart(dequantised(tensors, config, module), values) < limit, module
    # As good as MLX's own codes for the same weights.
    values = expected[at + "mlp.switch_mlp.down_proj"]
    own = mx.dequantize(*mx.quantize(mx.array(values).astype(mx.bfloat16), 64, bits), 64, bits)
    assert (apart(dequantised(tensors, config, at + "mlp.switch_mlp.down_proj"), values)
            < 1.02 * apart(np.array(own.astype(mx.float32)), values))
    # The router keeps 8 bits; norms are folded; conv1d is transposed.
    assert config.get(at + "mlp.gate", config)["bits"] == 8
    norm = np.array(tensors[at + "input_layernorm.weight"].astype(mx.float32))
    assert np.allclose(norm, 1 + source[ours + "input_layernorm.weight"], atol=8e-3)
    conv = "layers.0.linear_attn.conv1d.weight"
    turned = np.array(tensors["language_model.model." + conv].astype(mx.float32))
    assert np.array_equal(turned, source["model.language_model." + conv].transpose(0, 2, 1))


def test_the_mtp_block_stands_where_mlx_does_not_look(tmp_path):
    out = quantise(tmp_path, "mlx4")
    assert not any("mtp" in name for name in mlx_tensors(out))
    mtp = mx.load(str(out / "mtp/weights.safetensors"))
    assert mtp["mtp.fc.weight"].shape[-1] * 4 == mtp["mtp.fc.scales"].shape[-1] * 64


def test_conclave_runs_the_results(tmp_path):
    for form in ("mlx4", "mlx8", "fp8"):
        out = quantise(tmp_path, form)
        reply = run("bench", "decode", "--model", out, "--backends", "cpu", "--repeats", 1,
                    "--bench-threads", 1, "--sequences", 1, "--steps", 2, "--prefill", 8)
        assert reply.returncode == 0, reply.stderr


def test_a_cluster_answers_like_one_process(tmp_path, make_cluster):
    """Workers round activations as the coordinator says, to the bit."""
    out = quantise(tmp_path, "mlx4")

    def use(cluster):
        cluster.config.write_text(cluster.config.read_text().replace(
            f"model: {MODEL}\n",
            f"model: {out}\nplacement:\n  shards: 2\n"))

    body = {"model": "mlx4", "prompt": "Once upon a time", "max_tokens": 24,
            "ignore_eos": True, "temperature": 0, "logprobs": 1}
    answers = []
    for workers in (0, 2):
        cluster = make_cluster(workers=workers, change=use)
        reply = cluster.post("/v1/completions", body)
        assert reply.status_code == 200, reply.text
        choice = reply.json()["choices"][0]
        answers.append((choice["text"], choice["logprobs"]["token_logprobs"]))
    assert answers[0] == answers[1]


def test_the_result_says_whose_layout_it_is(tmp_path):
    for form, reader in (("mlx8", "mlx"), ("fp8", "pt")):
        out = quantise(tmp_path, form)
        file = next(out.glob("model-*.safetensors"))
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        assert header["__metadata__"]["format"] == reader


def test_what_cannot_be_done_is_said(tmp_path):
    reply = run("quantize", "--model", MODEL, "--to", "mlx5", "--out", tmp_path / "x")
    assert reply.returncode == 1 and "mlx4, mlx8, fp8" in reply.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    reply = run("quantize", "--model", MODEL, "--to", "mlx8", "--out", tmp_path / "full")
    assert reply.returncode == 1 and "is not empty" in reply.stderr
    assert pathlib.Path(tmp_path / "full/mine").read_text() == "x"
    reply = run("quantize", "--model", MODEL)
    assert reply.returncode == 1 and "--out" in reply.stderr
