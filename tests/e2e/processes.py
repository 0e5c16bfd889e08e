"""Starts and stops the real programs, every wait with an end."""
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import time

import httpx
import openai

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "deploy/models/qwen3.5-moe-tiny"
MODEL_NAME = MODEL.name
CONCLAVE = os.environ.get("CONCLAVE_BIN", str(ROOT / "build/dev/bin/conclave"))
WORKER = os.environ.get("CONCLAVE_WORKER_BIN",
                        str(ROOT / "build/dev/bin/conclave-worker"))
# The sanitizers' own memory is not what a program needs.
SANITIZED = "/asan/" in CONCLAVE or "/tsan/" in CONCLAVE
# A guard against hangs, no measure: sixteen replies at once take a minute of
# sanitized programs on two busy cores.
PATIENCE_S = 600 if SANITIZED else 60


# Below the ports that the system gives to other tests that run meanwhile.
PORTS = range(20000, 32000)


def free_ports(count):
    sockets = []
    for port in random.sample(PORTS, len(PORTS)):
        one = socket.socket()
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            one.close()
            continue
        sockets.append(one)
        if len(sockets) == count:
            break
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    assert len(ports) == count, f"too few free ports in {PORTS}"
    return ports


def wait_until(what, condition, seconds=PATIENCE_S):
    """Polls; returns the first true answer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds} s")


class Program:
    """A running program whose output goes to a file."""

    def __init__(self, arguments, log):
        self.log = pathlib.Path(log)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [str(a) for a in arguments], cwd=ROOT, stdout=out, stderr=out,
                stdin=subprocess.DEVNULL)

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, seconds=PATIENCE_S):
        return self.process.wait(seconds)

    def alive(self):
        return self.process.poll() is None

    def output(self):
        return self.log.read_text(errors="replace")

    def end(self):
        """Asks, then kills; returns the exit code."""
        if self.alive():
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait()
            raise AssertionError(f"{self.log.name} did not end:\n"
                                 + self.output()[-2000:]) from None


class Cluster:
    """A coordinator and its workers on free loopback ports."""

    def __init__(self, folder, workers=2, settings="", verify=None):
        self.folder = pathlib.Path(folder)
        ports = free_ports(workers + 1)
        self.port = ports[0]
        self.verify = verify if verify is not None else True
        scheme = "http" if verify is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.names = [f"w{i}" for i in range(workers)]
        self.config = self.folder / "cluster.yaml"
        listed = "".join(
            f"  - name: {name}\n    address: 127.0.0.1:{port}\n    threads: 1\n"
            for name, port in zip(self.names, ports[1:]))
        coordinator = f"  listen: 127.0.0.1:{self.port}\n  threads: 1\n"
        extra = re.search(r"^coordinator:\n((?:  .*\n)+)", settings, re.M)
        if extra:
            coordinator += extra[1]
            settings = settings.replace(extra[0], "")
        self.config.write_text(
            f"model: {MODEL}\ncoordinator:\n{coordinator}"
            + (f"workers:\n{listed}" if workers else "") + settings)
        self.workers = {}
        self.worker_arguments = None  # in place of the file
        self.coordinator = None

    def start(self, ready=True):
        for name in self.names:
            self.start_worker(name)
        self.start_coordinator()
        if ready:
            self.wait_ready()
        return self

    def start_worker(self, name):
        arguments = self.worker_arguments or ["--config", self.config]
        self.workers[name] = Program([WORKER, *arguments, "--name", name],
                                     self.folder / f"{name}.log")

    def start_coordinator(self):
        self.coordinator = Program(
            [CONCLAVE, "serve", "--config", self.config],
            self.folder / "coordinator.log")

    def health(self):
        try:
            return httpx.get(self.url + "/health", timeout=10,
                             verify=self.verify)
        except httpx.TransportError:
            return None

    def wait_ready(self):
        def ready():
            assert self.coordinator.alive(), self.coordinator.output()[-2000:]
            reply = self.health()
            return reply is not None and reply.status_code == 200
        try:
            wait_until("the cluster is ready", ready)
        except AssertionError:
            print(self.logs())
            raise

    def logs(self):
        programs = [self.coordinator, *self.workers.values()]
        return "\n".join(f"--- {p.log.name}\n{p.output()[-2000:]}"
                         for p in programs if p)

    def client(self, api_key="none"):
        return openai.OpenAI(base_url=self.url + "/v1", api_key=api_key,
                             timeout=PATIENCE_S, max_retries=0)

    def post(self, path, body, **more):
        return httpx.post(self.url + path, json=body, timeout=PATIENCE_S,
                          **more)

    def metric(self, line):
        """The value of a series, 0 if it is not there yet."""
        text = httpx.get(self.url + "/metrics", timeout=10).text
        found = re.search("^" + re.escape(line) + r" (\S+)$", text, re.M)
        return float(found[1]) if found else 0.0

    def stop(self):
        codes = [p.end() for p in [self.coordinator, *self.workers.values()]
                 if p]
        self.coordinator = None
        self.workers = {}
        return codes
