"""Workers that have no checkpoint: where their experts come from, and what
happens when a load is cut off. What it costs: test_memory.py."""
import re
import select
import signal
import socket
import threading

from processes import MODEL, MODEL_NAME, free_ports, wait_until

PROMPT = {"model": MODEL_NAME, "prompt": "Once upon a time", "max_tokens": 16,
          "ignore_eos": True, "temperature": 0}


def fetching(cluster, model=None):
    """Bends a cluster's file: no worker has a checkpoint."""
    text = cluster.config.read_text()
    if model:
        text = text.replace(f"model: {MODEL}\n", f"model: {model}\n")
    text = re.sub(r"(  - name: \w+\n)", r"\1    model: off\n", text)
    text += f"delivery:\n  cache: {cluster.folder}/cache\n"
    cluster.config.write_text(text)
    return cluster


def loaded_from(cluster, worker):
    return {source: cluster.metric(
        f'conclave_worker_load_source_bytes{{source="{source}",'
        f'worker="{worker}"}}') for source in ("local", "cache", "peer",
                                               "coordinator")}


def resident(cluster, worker):
    return cluster.metric(
        f'conclave_worker_resident_bytes{{worker="{worker}"}}')


def text_of(cluster):
    reply = cluster.post("/v1/completions", PROMPT)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["text"]


def test_workers_without_a_checkpoint(make_cluster, cluster):
    local = text_of(cluster)
    one = make_cluster(change=fetching)
    assert text_of(one) == local
    for worker in one.names:
        held = resident(one, worker)
        assert held > 0
        assert loaded_from(one, worker) == {
            "local": 0, "cache": 0, "peer": 0, "coordinator": held}
    # A restart fetches nothing.
    one.workers["w0"].signal(signal.SIGKILL)
    one.workers["w0"].wait()
    one.start_worker("w0")
    one.wait_ready()
    assert loaded_from(one, "w0")["cache"] == resident(one, "w0")
    assert text_of(one) == local
    # A new share fetches what is new; the rest lies in the cache, which both
    # workers share here.
    one.stop()
    one.config.write_text(one.config.read_text().replace(
        "threads: 1\n  - name: w1", "threads: 1\n    share: 3\n  - name: w1"))
    one.start()
    assert loaded_from(one, "w0")["coordinator"] == 0
    assert text_of(one) == local


def test_a_worker_killed_at_any_percentage_goes_on(make_cluster, wide):
    percents = [3, 35, 70, 97]
    left = list(percents)
    held = 4 * 16 * 3 * 8192 * 256 * 2

    def bend(cluster):
        return fetching(cluster, wide)

    one = make_cluster(workers=1, change=bend, ready=False)
    cache = one.folder / "cache"

    def cached():
        return sum(f.stat().st_size for f in cache.glob("??/*")
                   if f.exists())

    while left:
        wait_until(f"{left[0]} % are there",
                   lambda: cached() * 100 >= held * left[0])
        one.workers["w0"].signal(signal.SIGKILL)
        one.workers["w0"].wait()
        share = cached() * 100 / held
        left = [p for p in left if p > share]
        had = cached()
        one.start_worker("w0")
    one.wait_ready()
    sources = loaded_from(one, "w0")
    assert sources["cache"] >= had
    assert sources["cache"] + sources["coordinator"] == held
    text_of(one)


class Relay:
    """Passes TCP bytes on to a port; cuts all connections when told."""

    def __init__(self, to):
        self.to = to
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.passed = 0
        self.pairs = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                continue
            self.pairs.append((near, far))
            threading.Thread(target=self.pump, args=(near, far),
                             daemon=True).start()

    def pump(self, near, far):
        other = {near: far, far: near}
        try:
            while True:
                for one in select.select([near, far], [], [])[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    other[one].sendall(data)
                    self.passed += len(data)
        except (OSError, ValueError):
            pass
        finally:
            for one in (near, far):
                one.close()

    def cut(self):
        pairs, self.pairs = self.pairs, []
        for near, far in pairs:
            for one in (near, far):
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass


def test_a_link_that_drops_in_the_middle_of_a_shard(make_cluster, wide):
    relays = []

    def bend(cluster):
        fetching(cluster, wide)
        text = cluster.config.read_text()
        port = re.search(r"address: 127\.0\.0\.1:(\d+)", text)[1]
        # The worker listens on a port of its own, the file names the relay.
        own = free_ports(1)[0]
        relays.append(Relay(own))
        cluster.config.write_text(
            text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{relays[0].port}"))
        cluster.worker_arguments = ["--listen", f"127.0.0.1:{own}",
                                    "--model", "off", "--cache", "off"]
        return cluster

    one = make_cluster(workers=1, change=bend, ready=False)
    relay = relays[0]
    held = 4 * 16 * 3 * 8192 * 256 * 2
    for share in (0.2, 0.5, 0.8):
        wait_until(f"{share} passed", lambda: relay.passed > share * held)
        relay.cut()
    one.wait_ready()
    assert resident(one, "w0") == held
    # Nothing but what was on the way came twice.
    assert relay.passed < held * 1.25
    text_of(one)
