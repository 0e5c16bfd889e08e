#!/usr/bin/env python3
"""Real programs on GPUs whose rows travel by NCCL, against the same by gRPC:
the same greedy text; workers that are killed or stopped are named, and take
part again; and NCCL says that it goes the way that was asked for (nccl_log.py):
by pointers to the other process's memory, or over a network. Ends with `bench
decode --over local,grpc,nccl` on the same workers. Needs a GPU per process, or
with `--one-gpu` one for all, which NCCL then takes for hosts of their own.

    CONCLAVE_BIN=build/cuda/bin tests/gpu/workers_over_nccl.py

Exits 77, with the reason, where it cannot run; CONCLAVE_REQUIRE_GPUS=2 makes
that a failure where so many GPUs were promised.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import nccl_log

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("CONCLAVE_BIN", ROOT / "build/cuda/bin"))
MODEL = ROOT / "deploy/models/qwen3.5-moe-tiny"
PROMPTS = ["Once upon a time", "The answer is", "In the garden", "1 + 1 ="]
PATIENCE_S = 120  # a guard against hangs, no measure
SKIPPED = 77
BACKEND = "cuda"

# What NCCL is told beside its defaults, how its channels then go, and whether
# faults are tried.
WAYS = {
    "defaults": ({}, nccl_log.POINTERS, "f32", True),
    "rounded": ({}, nccl_log.POINTERS, "int8", False),
    "no cuMem": ({"NCCL_CUMEM_ENABLE": "0"}, ("P2P/IPC",), "f32", False),
    "sockets": ({"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1"},
                nccl_log.NETWORK, "f32", True),
}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def gpus():
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True,
                                text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


class Cluster:
    """A coordinator on the first GPU, workers on the next ones."""

    def __init__(self, folder, over, workers, one_gpu, environment,
                 activations):
        self.folder, self.workers, self.one_gpu = folder, workers, one_gpu
        self.environment = environment
        self.port = free_port()
        self.programs = {}
        listed = "".join(f"  - name: w{i}\n    address: 127.0.0.1:"
                         f"{free_port()}\n" for i in range(workers))
        self.config = folder / f"{over}.yaml"
        self.config.write_text(
            f"model: {MODEL}\n"
            f"coordinator:\n  listen: 127.0.0.1:{self.port}\n"
            f"  activations: {activations}\n"
            f"workers:\n{listed}"
            f"exchange:\n  over: {over}\n"
            f"deadlines:\n  exchange_s: 3\n  connect_s: 30\n")

    def start(self, name):
        rank = 0 if name == "coordinator" else 1 + int(name[1:])
        program = ["conclave", "serve"] if rank == 0 else ["conclave-worker"]
        arguments = [BIN / program[0], *program[1:], "--config", self.config,
                     "--backend", BACKEND]
        if BACKEND == "cuda":
            arguments += ["--gpu", 0 if self.one_gpu else rank]
        if rank > 0:
            arguments += ["--name", name]
        with open(self.folder / f"{name}.log", "ab") as out:
            self.programs[name] = subprocess.Popen(
                [str(a) for a in arguments], cwd=ROOT, stdout=out, stderr=out,
                env=self.environment_of(name, rank))

    def environment_of(self, name, rank):
        out = {**os.environ, **self.environment,
               **nccl_log.environment(self.folder, name)}
        if self.one_gpu:
            out["NCCL_HOSTID"] = f"conclave-{rank}"
        return out

    def bench(self, ways):
        """Takes the coordinator's place; returns what it prints."""
        self.programs["coordinator"].terminate()
        self.programs["coordinator"].wait(PATIENCE_S)
        reply = subprocess.run(
            [str(BIN / "conclave"), "bench", "decode", "--config",
             str(self.config), "--over", ways, "--backends", BACKEND,
             "--batch", "1,4", "--context", "100"], cwd=ROOT,
            env=self.environment_of("coordinator", 0), capture_output=True,
            text=True, timeout=PATIENCE_S, check=False)
        assert reply.returncode == 0, reply.stderr[-3000:]
        # A row of each way and batch, and one of its prompts.
        rows = [line.split()[0] for line in reply.stdout.splitlines() if line]
        for way in ways.split(","):
            assert rows.count(way) == 3, reply.stdout
        return reply.stdout

    def __enter__(self):
        for i in range(self.workers):
            self.start(f"w{i}")
        self.start("coordinator")
        self.wait_ready()
        return self

    def __exit__(self, kind, *_):
        for program in self.programs.values():
            program.send_signal(signal.SIGCONT)
            program.terminate()
        for name, program in self.programs.items():
            try:
                program.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                program.kill()
                if kind is None:
                    raise AssertionError(f"{name} does not end") from None
        if kind is not None:
            for log in sorted(self.folder.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-3000:]}")

    def wait_ready(self):
        end = time.monotonic() + PATIENCE_S
        while self.ask("/health")[0] != 200:
            assert time.monotonic() < end, "the cluster does not get ready"
            assert self.programs["coordinator"].poll() is None, "it ended"
            time.sleep(0.1)

    def ask(self, path, body=None):
        """(status, JSON), (0, None) without an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data,
            {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except (urllib.error.URLError, ConnectionError):
            return 0, None

    def complete(self, prompt, tokens=24):
        return self.ask("/v1/completions",
                        {"model": MODEL.name, "prompt": prompt,
                         "max_tokens": tokens, "temperature": 0,
                         "ignore_eos": True})

    def texts(self):
        """Alone, then all at once."""
        out = []
        for prompt in PROMPTS:
            status, reply = self.complete(prompt)
            assert status == 200, reply
            out.append(reply["choices"][0]["text"])
        with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
            for status, reply in pool.map(self.complete, PROMPTS):
                assert status == 200, reply
                out.append(reply["choices"][0]["text"])
        return out


def expect_named(answer, name):
    status, reply = answer
    assert status == 503, (status, reply)
    assert name in reply["error"]["message"], reply
    print("  ", reply["error"]["message"])


def try_faults(cluster, want):
    """Kills, then stops the last worker."""
    last = f"w{cluster.workers - 1}"
    for number in (signal.SIGKILL, signal.SIGSTOP):
        print(f"   {last} gets {number.name}")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(cluster.complete, PROMPTS[0], 1400)
            time.sleep(1)
            cluster.programs[last].send_signal(number)
            expect_named(answer.result(), last)
        if number == signal.SIGKILL:
            cluster.programs[last].wait(PATIENCE_S)
            expect_named(cluster.complete(PROMPTS[0]), last)
            cluster.start(last)
        else:
            cluster.programs[last].send_signal(signal.SIGCONT)
        cluster.wait_ready()
        # What was queued while it was away may still end in an error.
        end = time.monotonic() + PATIENCE_S
        while cluster.complete(PROMPTS[0], 1)[0] != 200:
            assert time.monotonic() < end, "no step works again"
        assert cluster.texts() == want


def check(way, folder, workers, one_gpu):
    """Returns a cell of the table: NCCL's channels."""
    environment, expected, activations, faults = WAYS[way]
    folder.mkdir()
    with Cluster(folder, "grpc", workers, one_gpu, {},
                 activations) as cluster:
        want = cluster.texts()
    over = "nccl" if BACKEND == "cuda" else "grpc"
    with Cluster(folder, over, workers, one_gpu, environment,
                 activations) as cluster:
        assert cluster.texts() == want
        if faults:
            try_faults(cluster, want)
        ways = ["local", "grpc"] + ["nccl"] * (over == "nccl")
        print(cluster.bench(",".join(ways)), flush=True)
    if BACKEND != "cuda":
        return "-"
    # Processes on one GPU pass for hosts.
    found = nccl_log.check(nccl_log.read(folder), 1 + workers,
                           nccl_log.NETWORK if one_gpu else expected)
    return nccl_log.table_cell(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=0,
                        help="default: the GPUs but one, at most 2")
    parser.add_argument("--one-gpu", action="store_true")
    arguments = parser.parse_args()
    there = gpus() if BACKEND == "cuda" else 8
    needed = 1 if arguments.one_gpu else 2
    if there < needed:
        print(f"skipped: {there} GPUs, {needed} are needed")
        required = int(os.environ.get("CONCLAVE_REQUIRE_GPUS", "0"))
        return 1 if required >= needed else SKIPPED
    most = 2 if arguments.one_gpu else min(2, there - 1)
    workers = arguments.workers or most
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            print(f"{way}: {workers} workers", flush=True)
            cells[way] = check(way, pathlib.Path(folder) / way, workers,
                               arguments.one_gpu)
    print("\nthe same text by gRPC and by NCCL, whose channels were\n")
    for way, cell in cells.items():
        print(f"{way:<8}  {cell}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
