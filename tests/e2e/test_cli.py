"""The commands as a user meets them."""
import json
import subprocess

import pytest

from processes import (CONCLAVE, MODEL, MODEL_NAME, PATIENCE_S, ROOT, WORKER,
                       free_ports)


def run(*arguments, text=None, program=CONCLAVE):
    return subprocess.run([program, *map(str, arguments)], cwd=ROOT,
                          input=text, capture_output=True, text=True,
                          timeout=PATIENCE_S, check=False)


def test_version_and_help():
    assert (ROOT / "VERSION").read_text().strip() in run("--version").stdout
    overview = run("--help")
    assert overview.returncode == 0
    for command in ("serve", "chat", "plan", "doctor", "quantize", "bench"):
        assert command in overview.stdout
        one = run(command, "--help")
        assert one.returncode == 0, one.stderr
        assert "conclave" in one.stdout
    assert run("serve", "--help").stdout.count("--config") >= 1


@pytest.mark.parametrize("arguments,hint", [
    (["serv"], "serve"),
    (["serve", "--modle", "x"], "model"),
    (["chat", "--ulr=x"], "url"),
])
def test_typing_errors_get_the_nearest_name(arguments, hint):
    reply = run(*arguments)
    assert reply.returncode == 2
    assert f"did you mean" in reply.stderr and hint in reply.stderr


def test_serve_says_what_is_missing(tmp_path):
    reply = run("serve")
    assert reply.returncode != 0 and "--model" in reply.stderr
    reply = run("serve", "--model", tmp_path / "nothing")
    assert reply.returncode != 0 and "nothing" in reply.stderr
    wrong = tmp_path / "cluster.yaml"
    wrong.write_text(f"model: {MODEL}\nworkers:\n  - nam: w0\n")
    reply = run("serve", "--config", wrong)
    assert reply.returncode != 0
    assert "cluster.yaml:3" in reply.stderr and "name" in reply.stderr


def test_a_bind_outside_loopback_needs_a_key(tmp_path):
    port = free_ports(1)[0]
    config = tmp_path / "cluster.yaml"
    config.write_text(f"model: {MODEL}\n"
                      f"coordinator:\n  listen: 0.0.0.0:{port}\n")
    reply = run("serve", "--config", config)
    assert reply.returncode != 0
    assert "api_key" in reply.stderr and "insecure" in reply.stderr


def test_a_worker_outside_loopback_needs_tls(tmp_path):
    port = free_ports(1)[0]
    config = tmp_path / "cluster.yaml"
    config.write_text(f"model: {MODEL}\nworkers:\n"
                      f"  - name: w0\n    address: 0.0.0.0:{port}\n")
    reply = run("--config", config, "--name", "w0", program=WORKER)
    assert reply.returncode != 0
    assert "tls" in reply.stderr and "insecure" in reply.stderr


def test_a_taken_port_is_named(cluster):
    reply = run("serve", "--model", MODEL, "--listen",
                f"127.0.0.1:{cluster.port}")
    assert reply.returncode != 0
    assert str(cluster.port) in reply.stderr and "--listen" in reply.stderr


def test_chat_once(cluster):
    reply = run("chat", "--url", cluster.url, "--once",
                "/nothink Tell me a story about a fox.")
    assert reply.returncode == 0, reply.stderr
    assert "fox" in reply.stdout
    port = free_ports(1)[0]
    reply = run("chat", "--url", f"http://127.0.0.1:{port}", "--once", "x")
    assert reply.returncode == 1
    assert str(port) in reply.stderr


def test_chat_through_a_pipe(cluster):
    reply = run("chat", "--url", cluster.url, "--temperature", "0",
                text="/help\n/nothink\nWhat is 31 plus 12?\n/reset\n"
                     "/think\nWhat is 31 plus 12?\n/quit\nnever sent\n")
    assert reply.returncode == 0, reply.stderr
    assert "/nothink" in reply.stdout
    assert reply.stdout.count("43") >= 2
    assert "error" not in reply.stderr


def test_serve_announces_itself(cluster):
    said = cluster.coordinator.output()
    assert f"{cluster.url}/v1" in said
    for name in cluster.names:
        assert name in said
    assert MODEL_NAME in said


FLAGSHIP = ["plan", "--shape", "397b-a17b", "--format", "mlx4"]


def test_plan_prints_what_fits_and_how_fast():
    reply = run(*FLAGSHIP, "--nodes", "h200,4xm3-ultra-96",
                "--sequences", "1,8")
    assert reply.returncode == 0, reply.stderr
    assert "223860768352" in reply.stdout
    assert "\nMTP 0 bytes" in reply.stdout
    assert "m3-ultra-96#3" in reply.stdout and "exchange" in reply.stdout


def test_plan_as_json_covers_every_expert():
    reply = run(*FLAGSHIP, "--nodes", "h100,8xm3-ultra-96", "--json")
    plan = json.loads(reply.stdout)
    for one in plan["plans"]:
        assert one["fits"]
        held = sum(node["expert_bytes"] for node in one["nodes"])
        assert held == 60 * 512 * 7_077_888
        for node in one["nodes"]:
            used = sum(node[part + "_bytes"] for part in (
                "dense", "expert", "kv", "state", "workspace"))
            assert used <= node["memory_bytes"]


def test_plan_says_what_does_not_fit():
    reply = run(*FLAGSHIP, "--nodes", "h100")
    assert reply.returncode == 1
    assert "needs" in reply.stdout and "GB free" in reply.stdout
    assert run("plan").returncode == 1
    unknown = run("plan", "--shape", "7b", "--format", "mlx4", "--nodes", "h1")
    assert "397b-a17b" in unknown.stderr


@pytest.mark.parametrize("file,shape,form,node", [
    ("four-mac-studios", "397b-a17b", "mlx4", "studio-3"),
    ("four-mac-studios", "122b-a10b", "bf16", "studio-3"),
    ("mixed", "122b-a10b", "mlx4", "book-2"),
    ("mixed", "397b-a17b", "mlx4", "book-2")])
def test_plan_of_the_examples_without_a_checkpoint(file, shape, form, node):
    """As docs/planning.md has it."""
    reply = run("plan", "--config", ROOT / f"deploy/config/{file}.yaml",
                "--shape", shape, "--format", form, "--sequences", "1")
    assert reply.returncode == 0, reply.stderr
    assert node in reply.stdout


def test_plan_of_a_cluster_file(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(f"""
model: {MODEL}
coordinator: {{device: cpu-1}}
workers:
  - {{name: mac, address: "127.0.0.1:7101", device: m4-max-64}}
""")
    reply = run("plan", "--config", file, "--sequences", "1")
    assert reply.returncode == 0, reply.stderr
    assert "mac" in reply.stdout
    file.write_text(file.read_text().replace(", device: m4-max-64", ""))
    assert "worker mac.device is missing" in run("plan", "--config",
                                                 file).stderr
