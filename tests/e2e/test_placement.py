"""conclave plan says what conclave serve then does."""
import json

from processes import CONCLAVE, Program
from test_cli import run


KV_BYTES_PER_TOKEN = 2 * 2 * 2 * 256 * 4  # 2 layers, 2 heads, float32


def as_placed(cluster):
    reply = run("plan", "--config", cluster.config, "--json")
    assert reply.returncode == 0, reply.stderr
    return json.loads(reply.stdout)["plans"][0]["as_placed"]["nodes"]


def with_devices(cluster):
    text = cluster.config.read_text()
    text = text.replace("coordinator:\n", "coordinator:\n  device: cpu-1\n")
    text = text.replace("    threads: 1\n", "    threads: 1\n    device: h100\n")

    def write(kv_tokens):
        cluster.config.write_text(
            text + f"limits:\n  max_sequences: 2\n  kv_tokens: {kv_tokens}\n")
    # The caches leave room for half of the experts: the rest goes to workers.
    write(64)
    home = as_placed(cluster)[0]
    room = home["memory_bytes"] - sum(
        home[part + "_bytes"]
        for part in ("dense", "state", "workspace")) - home["expert_bytes"] // 2
    write(room // KV_BYTES_PER_TOKEN // 64 * 64)


def test_serve_holds_what_plan_says(make_cluster):
    cluster = make_cluster(change=with_devices)
    home, *workers = as_placed(cluster)
    assert home["expert_bytes"] > 0

    def held(part):
        return cluster.metric(f'conclave_resident_bytes{{part="{part}"}}')
    assert held("dense") == home["dense_bytes"]
    assert held("experts") == home["expert_bytes"]
    assert held("kv") == home["kv_bytes"]
    assert held("state") == home["state_bytes"]
    assert sum(node["expert_bytes"] for node in workers) > 0
    for node in workers:
        name = node["node"]
        assert cluster.metric(
            f'conclave_worker_resident_bytes{{worker="{name}"}}'
        ) == node["expert_bytes"], name
    assert "by the solver" in cluster.coordinator.output()


def test_what_does_not_fit_is_refused_before_it_loads(make_cluster, tmp_path):
    cluster = make_cluster(workers=0)
    cluster.stop()
    text = cluster.config.read_text()
    cluster.config.write_text(text + "limits:\n  kv_tokens: 10000000000\n")
    program = Program([CONCLAVE, "serve", "--config", cluster.config],
                      tmp_path / "refused.log")
    assert program.wait() == 1
    assert "the coordinator needs" in program.output()
    assert "GB free" in program.output()
    assert "loading" not in program.output()
