"""`conclave bench decode` over the workers of a cluster file."""
import signal
import subprocess

import pytest

from processes import (CONCLAVE, MODEL, PATIENCE_S, ROOT, Cluster, Program,
                       wait_until)

QUICK = "deadlines:\n  exchange_s: 1\n  connect_s: 1\n"
SMALL = ["--steps", "4", "--repeats", "2", "--context", "70"]


@pytest.fixture
def workers(tmp_path):
    """A cluster whose coordinator is the benchmark."""
    one = Cluster(tmp_path, settings=QUICK)
    for name in one.names:
        one.start_worker(name)
    yield one
    one.stop()


def bench(*arguments):
    return subprocess.run(
        [CONCLAVE, "bench", "decode", *map(str, arguments)], cwd=ROOT,
        capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def tables(text):
    """Rows of each table, cells by the heading's names."""
    out = []
    for part in text.split("\n\n")[1:]:
        lines = [[cell.strip() for cell in line.split("  ") if cell.strip()]
                 for line in part.strip().splitlines()]
        assert all(len(line) == len(lines[0]) for line in lines), part
        out.append([dict(zip(lines[0], line)) for line in lines[1:]])
    return out


def test_ways_are_compared_in_one_table(workers):
    reply = bench("--config", workers.config, "--over", "local,grpc",
                  "--batch", "1,3", *SMALL)
    assert reply.returncode == 0, reply.stderr
    assert MODEL.name in reply.stdout and "2 workers" in reply.stdout
    steps, prompts = tables(reply.stdout)
    assert [(row["over"], row["batch"]) for row in steps] == [
        ("local", "1"), ("grpc", "1"), ("local", "3"), ("grpc", "3")]
    for row in steps:
        assert float(row["ms/step"]) > 0
        assert float(row["tok/s"]) == pytest.approx(
            1000 * int(row["batch"]) / float(row["ms/step"]), rel=0.01)
        assert row["same token"] == f"{row['batch']} of {row['batch']}"
        travels = row["over"] == "grpc"
        for what in ("exchange ms", "MB sent", "MB received"):
            assert (row[what] == "-") != travels, row
    # Three rows of a step bring three times the sums of one.
    one, three = (float(row["MB received"]) for row in steps
                  if row["over"] == "grpc")
    assert 2 * one < three < 4 * one
    assert [row["over"] for row in prompts] == ["local", "grpc"]
    assert all(row["tokens"] == "70" for row in prompts)


def test_without_workers_all_is_local():
    reply = bench("--model", MODEL, "--over", "local", "--backends",
                  "cpu-plain", "--batch", "2", *SMALL)
    assert reply.returncode == 0, reply.stderr
    assert [row["over"] for row in tables(reply.stdout)[0]] == ["local"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_lost_on_the_way_is_named(workers, number):
    program = Program(
        [CONCLAVE, "bench", "decode", "--config", workers.config, "--over",
         "grpc", "--batch", "1", "--repeats", "1000000", "--context", "70"],
        workers.folder / "bench.log")
    try:
        wait_until("it measures", lambda: "over grpc: batch 1" in
                   program.output())
        workers.workers["w1"].signal(number)
        assert program.wait() == 1, program.output()
    finally:
        program.end()
    assert "bench decode: over grpc: batch 1: worker w1" in program.output()


def test_what_was_measured_before_a_fault_is_not_lost(tmp_path):
    """Workers that are not there."""
    cluster = Cluster(tmp_path, settings=QUICK)
    reply = bench("--config", cluster.config, "--over", "local,grpc",
                  "--batch", "1", "--ready-s", "1", *SMALL)
    assert reply.returncode == 1
    assert [row["over"] for row in tables(reply.stdout)[0]] == ["local"]
    assert "over grpc: worker w0" in reply.stderr
    assert "start the workers" in reply.stderr


@pytest.mark.parametrize("arguments,hints", [
    (["--over", "grpc"], ["--over grpc", "--config"]),
    (["--over", "udp"], ["local, grpc and nccl"]),
    (["--over", "local", "--sequences", "1"], ["--batch"]),
    (["--over", "local", "--micro-batches", "1,2"], ["--micro-batches"]),
    (["--over", "local", "--steps", "0"], ["--steps"]),
    (["--backends", "gpu"], ["--backends", "cuda"]),
])
def test_errors_say_what_to_do(arguments, hints):
    reply = bench("--model", MODEL, *arguments)
    assert reply.returncode == 1
    for hint in hints:
        assert hint in reply.stderr


def test_nccl_needs_a_gpu_before_anything_is_measured(workers):
    reply = bench("--config", workers.config, "--over", "local,nccl",
                  "--backends", "cpu", *SMALL)
    assert reply.returncode == 1
    assert "over nccl: exchange.over: nccl needs a GPU" in reply.stderr
    assert "batch" not in reply.stderr
