"""Workers that die, hang and come back; clients that leave; full queues."""
import json
import signal
import threading
import time

import httpx

from processes import MODEL_NAME, PATIENCE_S, wait_until

# Small, so that a hanging worker is found soon.
QUICK = "deadlines:\n  exchange_s: 1\n  connect_s: 1\n"
ENDLESS = {"model": MODEL_NAME, "prompt": "Once upon a time",
           "max_tokens": 1500, "ignore_eos": True, "temperature": 0}


class Stream:
    """A streamed reply, read event by event."""

    def __init__(self, cluster, **more):
        self.client = httpx.Client(timeout=PATIENCE_S)
        request = self.client.build_request(
            "POST", cluster.url + "/v1/completions",
            json={**ENDLESS, "stream": True, **more})
        self.response = self.client.send(request, stream=True)
        self.lines = self.response.iter_lines()

    def event(self):
        """The next event's data; None at the end of the connection."""
        for line in self.lines:
            if line.startswith("data: "):
                return line[len("data: "):]
        return None

    def rest(self):
        return list(iter(self.event, None))

    def close(self):
        self.response.close()
        self.client.close()


def assert_ends_in_error(events, worker):
    assert "[DONE]" not in events
    error = json.loads(events[-1])["error"]
    assert error["code"] == 503
    assert worker in error["message"]
    assert not any("error" in json.loads(e) for e in events[:-1])


def complete(cluster, **more):
    return cluster.post("/v1/completions",
                        {**ENDLESS, "max_tokens": 8, **more})


def test_a_killed_worker_is_named_and_comes_back(make_cluster):
    cluster = make_cluster(settings=QUICK)
    before = complete(cluster).json()["choices"][0]["text"]
    coordinator = cluster.coordinator.process.pid
    for worker in cluster.names:
        stream = Stream(cluster)
        assert "text" in stream.event()
        cluster.workers[worker].signal(signal.SIGKILL)
        assert_ends_in_error(stream.rest(), worker)
        stream.close()
        cluster.workers[worker].wait()

        started = time.monotonic()
        for more in ({}, {"stream": True}):
            reply = complete(cluster, **more)
            assert reply.status_code == 503, reply.text
            assert worker in reply.json()["error"]["message"]
        assert time.monotonic() - started < 20
        health = cluster.health()
        assert health.status_code == 503
        assert worker in health.json()["reason"]

        cluster.start_worker(worker)
        cluster.wait_ready()
        reply = complete(cluster)
        assert reply.status_code == 200, reply.text
        assert reply.json()["choices"][0]["text"] == before
        assert cluster.coordinator.process.pid == coordinator
        assert cluster.coordinator.alive()


def test_a_stopped_worker_is_found_within_the_deadline(make_cluster):
    cluster = make_cluster(settings=QUICK)
    before = complete(cluster).json()["choices"][0]["text"]
    worker = cluster.names[1]
    stream = Stream(cluster)
    assert "text" in stream.event()
    cluster.workers[worker].signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert_ends_in_error(stream.rest(), worker)
    # One second of exchange, the rest is for a slow machine.
    assert time.monotonic() - stopped < 10
    stream.close()

    # A whole reply, while it still hangs.
    started = time.monotonic()
    reply = complete(cluster)
    assert reply.status_code == 503, reply.text
    assert worker in reply.json()["error"]["message"]
    assert time.monotonic() - started < 10

    cluster.workers[worker].signal(signal.SIGCONT)
    cluster.wait_ready()

    def serves():
        reply = complete(cluster)
        return reply.status_code == 200 and \
            reply.json()["choices"][0]["text"] == before
    wait_until("the cluster serves again", serves)


def test_several_streams_end_when_a_worker_dies(make_cluster):
    cluster = make_cluster(settings=QUICK)
    streams = [Stream(cluster) for _ in range(4)]
    for stream in streams:
        assert "text" in stream.event()
    cluster.workers["w0"].signal(signal.SIGKILL)
    for stream in streams:
        assert_ends_in_error(stream.rest(), "w0")
        stream.close()


def running(cluster):
    health = cluster.health().json()
    return health["running"], health["waiting"]


def test_a_client_that_leaves_is_cancelled(make_cluster):
    cluster = make_cluster(workers=0)
    left = 'conclave_http_requests_total{path="/v1/completions",status="499"}'
    stream = Stream(cluster)
    assert "text" in stream.event()
    assert running(cluster)[0] == 1
    stream.close()
    wait_until("the stream is cancelled", lambda: running(cluster) == (0, 0))
    assert cluster.metric(left) == 1

    # A whole reply, too: the client gives up before it comes.
    try:
        httpx.post(cluster.url + "/v1/completions", json=ENDLESS, timeout=0.2)
        raise AssertionError("the reply came at once")
    except httpx.ReadTimeout:
        pass
    wait_until("the reply is cancelled", lambda: running(cluster) == (0, 0))
    wait_until("it is counted", lambda: cluster.metric(left) == 2)
    assert complete(cluster).status_code == 200


def test_a_full_queue_is_429(make_cluster):
    cluster = make_cluster(
        workers=0, settings="limits:\n  max_sequences: 1\n  max_queue: 1\n")
    first = Stream(cluster)
    assert "text" in first.event()
    begun = {}

    def second():
        stream = Stream(cluster, max_tokens=4)
        begun["events"] = stream.rest()
        stream.close()
    waiter = threading.Thread(target=second)
    waiter.start()
    wait_until("one runs, one waits", lambda: running(cluster) == (1, 1))
    reply = complete(cluster)
    assert reply.status_code == 429, reply.text
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json()["error"]["type"] == "rate_limit_error"
    first.close()
    waiter.join(PATIENCE_S)
    assert begun["events"][-1] == "[DONE]"
    assert complete(cluster).status_code == 200


def test_interrupt_ends_streams_and_exits_clean(make_cluster):
    cluster = make_cluster()
    stream = Stream(cluster)
    assert "text" in stream.event()
    cluster.coordinator.signal(signal.SIGINT)
    events = stream.rest()
    stream.close()
    assert json.loads(events[-1])["error"]["code"] == 503
    assert cluster.coordinator.wait(20) == 0
    for worker in cluster.workers.values():
        worker.signal(signal.SIGINT)
    assert [w.wait(20) for w in cluster.workers.values()] == [0, 0]


def test_terminate_while_idle_exits_clean(make_cluster):
    cluster = make_cluster(workers=0)
    cluster.coordinator.signal(signal.SIGTERM)
    assert cluster.coordinator.wait(20) == 0


TWO = QUICK + "exchange:\n  micro_batches: 2\n"
PROMPTS = ["Once upon a time", "The sea", "def main():", "1, 2, 3, 4, 5, 6"]


def texts(cluster):
    """Replies to all prompts at once."""
    streams = [Stream(cluster, prompt=p, max_tokens=48) for p in PROMPTS]
    out = []
    for stream in streams:
        events = stream.rest()
        assert events[-1] == "[DONE]"
        out.append("".join(json.loads(e)["choices"][0]["text"]
                           for e in events[:-1]))
        stream.close()
    return out


def test_two_micro_batches_change_no_text_and_end_together(make_cluster):
    whole = make_cluster(settings="exchange:\n  micro_batches: 1\n")
    want = texts(whole)
    whole.stop()
    cluster = make_cluster(settings=TWO)
    assert texts(cluster) == want

    streams = [Stream(cluster, prompt=p) for p in PROMPTS]
    for stream in streams:
        assert "text" in stream.event()
    series = 'conclave_micro_batch_steps_total{micro_batches="2"}'
    wait_until("steps are cut", lambda: cluster.metric(series) > 0)
    cluster.workers["w1"].signal(signal.SIGKILL)
    for stream in streams:
        assert_ends_in_error(stream.rest(), "w1")
        stream.close()
    cluster.workers["w1"].wait()
    cluster.start_worker("w1")
    cluster.wait_ready()
    assert texts(cluster) == want
