#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""restart.py BIN FOLDER [ROUNDS]: how long a worker takes from its start until
it is ready, by where its experts come from, beside dd of the same bytes.

BIN has conclave, conclave-worker and write_model (a build's bin folder, or
the build folder); FOLDER is made, takes 3 x 3.2 GB and is removed. The page
cache is dropped before every measurement. Everything runs on one machine, so
"coordinator" includes reading the checkpoint there."""
import datetime
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time

SHAPE = ("16", "1024", "64", "8", "512")  # of write_model


def find(build, name):
    return str(next(p for p in pathlib.Path(build).rglob(name) if p.is_file()))


def drop(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def dd(folder):
    drop(folder)
    begin = time.time()
    for path in folder.rglob("*"):
        if path.is_file():
            subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=16M"],
                           check=True, stderr=subprocess.DEVNULL)
    return time.time() - begin


class Bench:
    def __init__(self, build, folder):
        self.conclave = find(build, "conclave")
        self.worker = find(build, "conclave-worker")
        self.folder = folder
        self.model = folder / "model"
        self.cache = folder / "cache"
        subprocess.run([find(build, "write_model"), self.model, *SHAPE],
                       check=True)

    def start(self, source):
        """Seconds from the worker's start until it is ready."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = self.folder / "cluster.yaml"
        config.write_text(
            f"model: {self.model}\nworkers:\n  - name: w0\n"
            f"    address: 127.0.0.1:{port}\n"
            + ("" if source == "local copy" else "    model: off\n")
            + f"delivery:\n  cache: {self.cache}\n")
        drop(self.folder)
        begin = time.time()
        with subprocess.Popen([self.worker, "--config", config, "--name", "w0"],
                              stderr=subprocess.DEVNULL) as worker:
            log = subprocess.run(
                [self.conclave, "bench", "decode", "--config", config,
                 "--steps", "1", "--prefill", "1", "--context", "1",
                 "--repeats", "1", "--sequences", "1", "--bench-threads", "1",
                 "--backends", "cpu"], capture_output=True, text=True,
                check=True, env={**os.environ, "TZ": "UTC"}).stderr
            worker.terminate()
        ready = re.search(r"^(\S+) info +worker w0 .* is ready", log, re.M)[1]
        there = datetime.datetime.fromisoformat(ready).replace(
            tzinfo=datetime.timezone.utc).timestamp()
        loaded = re.search(r"loaded ([\d.]+) GB in .*from (.*)", log)
        return there - begin, float(loaded[1]), loaded[2]


def main():
    build, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    folder.mkdir()
    try:
        bench = Bench(build, folder)
        seconds = {}

        def note(what, value):
            seconds.setdefault(what, []).append(value)

        size = 0
        for _ in range(rounds):
            shutil.rmtree(bench.cache, ignore_errors=True)
            note("dd of the checkpoint", dd(bench.model))
            for what, source in (("from the coordinator, cache empty", "here"),
                                 ("from its cache", "its cache"),
                                 ("local copy", "its copy of the checkpoint")):
                if source == "its cache":
                    note("dd of the cache", dd(bench.cache))
                took, size, came = bench.start(what)
                assert came == source, (what, came)
                note(what, took)
        print(f"worker with {size:.2f} GB of experts, page cache dropped, "
              f"median of {rounds} interleaved rounds\n")
        for what, values in seconds.items():
            middle = statistics.median(values)
            print(f"{what:36}{middle:8.2f} s {size / middle:8.2f} GB/s")
        warm = [a - b for a, b in zip(seconds["from its cache"],
                                      seconds["dd of the cache"])]
        print(f"\nrestart from the cache less dd: "
              f"{statistics.median(warm):.2f} s (target: at most 2)")
    finally:
        shutil.rmtree(folder)


main()
