#!/usr/bin/env python3
"""Holds what `conclave plan --links` predicts against what is measured.

Starts workers behind links of a chosen rate and delay, one per network
namespace where that is permitted (root, iproute2), else all on loopback; runs
`conclave doctor --out`, `conclave plan --links` and `conclave bench decode` in
turn and prints a table. It measures and judges nothing; run it by hand on a
quiet machine.

  tests/network/predict.py --build build/dev --delays 0,100,500,2000
"""
import argparse
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PORT, INNER_PORT = 7100, 7101
PATIENCE_S = 300


def run(*arguments, check=True, patience_s=PATIENCE_S):
    return subprocess.run([str(a) for a in arguments], capture_output=True,
                          text=True, timeout=patience_s, check=check)


class Namespace:
    """A worker's machine: a namespace and a veth pair to it."""

    def __init__(self, index, rate):
        self.name = f"conclave-{index}"
        self.veth = f"cncl{index}"
        self.address = f"10.77.{index}.2"
        self.rate = rate
        self.prefix = ["ip", "netns", "exec", self.name]

    def make(self):
        self.remove()
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self.veth, "type", "veth", "peer", "name",
            "eth0", "netns", self.name)
        near = self.address[:-1] + "1"
        run("ip", "addr", "add", f"{near}/24", "dev", self.veth)
        run("ip", "link", "set", self.veth, "up")
        run(*self.prefix, "ip", "addr", "add", f"{self.address}/24", "dev",
            "eth0")
        for device in ("eth0", "lo"):
            run(*self.prefix, "ip", "link", "set", device, "up")
        if self.rate:
            # A small burst, so that single rows are as slow as many.
            shape = ["root", "tbf", "rate", self.rate, "burst", "4kb",
                     "latency", "200ms"]
            run("tc", "qdisc", "add", "dev", self.veth, *shape)
            run(*self.prefix, "tc", "qdisc", "add", "dev", "eth0", *shape)

    def remove(self):
        run("ip", "link", "del", self.veth, check=False)
        run("ip", "netns", "del", self.name, check=False)


class Loopback:
    """A worker of this machine, with ports of its own."""

    def __init__(self, index):
        self.address = "127.0.0.1"
        self.port = PORT + 10 * index
        self.prefix = []

    def make(self):
        pass

    def remove(self):
        pass


class Cluster:
    def __init__(self, options, folder, delay_us):
        self.options = options
        self.folder = folder
        self.delay_us = delay_us
        self.programs = []
        self.hosts = [Loopback(i) if options.loopback
                      else Namespace(i, options.rate)
                      for i in range(options.workers)]
        self.config = folder / f"cluster-{delay_us}.yaml"

    def __enter__(self):
        build = pathlib.Path(self.options.build)
        workers = ""
        for i, host in enumerate(self.hosts):
            host.make()
            port = getattr(host, "port", PORT)
            inner = port + 1
            workers += (f"  - {{name: w{i}, address: '{host.address}:{port}', "
                        f"threads: {self.options.threads}, "
                        f"spin_us: {self.options.spin_us}}}\n")
            self.start(host, build / "tests/network/delay_relay",
                       host.address, port, "127.0.0.1", inner,
                       self.delay_us // 2)
            self.start(host, build / "bin/conclave-worker",
                       f"--listen=127.0.0.1:{inner}", f"--name=w{i}",
                       f"--model={self.options.model}",
                       f"--threads={self.options.threads}",
                       f"--spin_us={self.options.spin_us}",
                       "--log_level=error")
        self.config.write_text(
            f"model: {self.options.model}\ninsecure: true\n"
            f"coordinator: {{threads: {self.options.threads}, "
            f"listen: '127.0.0.1:7180', spin_us: {self.options.spin_us}}}\n"
            f"workers:\n{workers}")
        time.sleep(1)
        return self

    def start(self, host, *arguments):
        self.programs.append(subprocess.Popen(
            [*host.prefix, *(str(a) for a in arguments)]))

    def __exit__(self, *unused):
        for program in self.programs:
            program.terminate()
        for program in self.programs:
            program.wait(PATIENCE_S)
        for host in self.hosts:
            host.remove()


def conclave(options, *arguments, **how):
    return run(pathlib.Path(options.build) / "bin/conclave", *arguments,
               **how)


def predicted(options, cluster, links):
    """Seconds of a step, by sequences; and the doctor's report."""
    said = conclave(options, "doctor", "--config", cluster.config, "--out",
                    links)
    plan = json.loads(conclave(
        options, "plan", "--config", cluster.config, "--links", links,
        "--sequences", options.sequences, "--context", "128",
        "--json").stdout)
    steps = {p["sequences"]: sum(p["as_placed"]["step_seconds"].values())
             for p in plan["plans"]}
    return steps, said.stdout


def measured(options, cluster):
    said = conclave(options, "bench", "decode", "--config", cluster.config,
                    "--backends", "cpu", "--bench-threads", options.threads,
                    "--sequences", options.sequences,
                    "--micro-batches", "1",  # as plan predicts
                    "--repeats", "3",
                    "--steps", "64", "--prefill", "64", "--log-level",
                    "error").stdout
    rows = re.findall(r"^cpu +\d+ +(\d+) +\d+ +\d+ +(\d+) ", said, re.M)
    return {int(sequences): float(us) * 1e-6 for sequences, us in rows}


def clusters(options):
    """(delay, cluster) for each delay asked for; writes a model if none is
    given."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if not options.model:
            options.model = folder / "model"
            run(pathlib.Path(options.build) / "tests/network/write_model",
                options.model, 8, 1024, 32, 4, 256)
        for delay in map(int, options.delays.split(",")):
            with Cluster(options, folder, delay) as cluster:
                yield delay, cluster


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default=ROOT / "build/dev")
    parser.add_argument("--model", help="default: a random one of 400 MB")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--spin-us", type=int, default=-1)
    parser.add_argument("--rate", default="1gbit", help="of tc tbf; '': none")
    parser.add_argument("--delays", default="0,100,500,2000",
                        help="microseconds added to a round trip")
    parser.add_argument("--sequences", default="1,8")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.loopback = run("ip", "netns", "list", check=False).returncode != 0 \
        if shutil.which("ip") else True
    if not options.loopback:
        options.loopback = run("ip", "netns", "add", "conclave-try",
                               check=False).returncode != 0
        run("ip", "netns", "del", "conclave-try", check=False)
    print("links:", "loopback" if options.loopback else
          f"namespaces, {options.rate or 'no'} rate limit", flush=True)
    rows = []
    for delay, cluster in clusters(options):
        foretold, seen = [], []
        for _ in range(options.rounds):
            steps, said = predicted(options, cluster,
                                    cluster.folder / "links.yaml")
            foretold.append(steps)
            seen.append(measured(options, cluster))
        print(f"\ndelay {delay} us:\n{said}", flush=True)
        for sequences in foretold[0]:
            guess = statistics.median(f[sequences] for f in foretold)
            true = statistics.median(s[sequences] for s in seen)
            rows.append(f"| {delay} | {sequences} | {guess * 1e3:.2f} "
                        f"| {true * 1e3:.2f} "
                        f"| {100 * (guess / true - 1):+.0f} % |")
    print("\n| delay us | sequences | predicted ms/step | measured ms/step "
          "| off |\n|---|---|---|---|---|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
