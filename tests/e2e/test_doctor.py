"""`conclave doctor` on real clusters, and what `plan` makes of its figures."""
import json
import re
import signal
import subprocess

import pytest

from processes import (CONCLAVE, MODEL, PATIENCE_S, ROOT, WORKER, Program,
                       free_ports)


def run(*arguments):
    return subprocess.run([CONCLAVE, *map(str, arguments)], cwd=ROOT,
                          capture_output=True, text=True, timeout=PATIENCE_S,
                          check=False)


def problems(*arguments):
    """(node, kind) of each problem; the exit code goes by them."""
    reply = run("doctor", "--quick", "--json", *arguments)
    found = json.loads(reply.stdout)["problems"]
    assert reply.returncode == (1 if found else 0), reply.stderr
    for one in found:
        assert one["what"] and one["remedy"]
    # Workers of one loopback differ by chance.
    return {(one["node"], one["kind"]) for one in found
            if one["kind"] != "slow_link"}


@pytest.fixture(scope="module")
def links(cluster, tmp_path_factory):
    """The doctor's report on a cluster that serves, and its file."""
    file = tmp_path_factory.mktemp("links") / "links.yaml"
    reply = run("doctor", "--config", cluster.config, "--out", file)
    return reply, file


def test_the_table_of_a_serving_cluster(cluster, links):
    reply, _ = links
    lines = reply.stdout.splitlines()
    assert len({len(line) for line in lines[:2 + len(cluster.names)]}) == 1
    for name in cluster.names:
        row = next(line for line in lines if line.startswith(name + " "))
        assert (ROOT / "VERSION").read_text().strip() in row
        assert " - " not in row
    assert "measuring the link to w0" in reply.stderr
    # It disturbs nobody.
    assert cluster.health().status_code == 200
    answer = cluster.post("/v1/completions", {"prompt": "Once",
                                              "max_tokens": 4})
    assert answer.status_code == 200
    assert problems("--config", cluster.config) == set()


def test_workers_measure_with_the_activations_of_the_file(cluster):
    def measured():
        return [re.findall("measured experts, weights bf16, activations "
                           r"(\w+)", cluster.workers[name].output())
                for name in cluster.names]

    for asked, expected in (([], "int8"), (["--activations", "f32"], "f32")):
        before = measured()
        run("doctor", "--quick", "--config", cluster.config, *asked)
        assert measured() == [words + [expected] for words in before]


def test_plan_uses_the_measurements(cluster, links):
    _, file = links
    arguments = ["plan", "--config", cluster.config, "--links", file,
                 "--sequences", "1,8"]
    reply = run(*arguments)
    assert reply.returncode == 0, reply.stderr
    assert "measured: coordinator: memory" in reply.stdout
    assert "measured: w1: round trip" in reply.stdout
    assert "places the experts (by share)" in reply.stdout
    before = json.loads(run(*arguments, "--json").stdout)
    text = file.read_text()
    slow = file.with_name("slow.yaml")
    slow.write_text(text.replace("round_trip_us: ", "round_trip_us: 9"))
    arguments[4] = slow
    after = json.loads(run(*arguments, "--json").stdout)
    for one, other in zip(before["plans"], after["plans"]):
        assert (one["as_placed"]["step_seconds"]["exchange"]
                < other["as_placed"]["step_seconds"]["exchange"])
    # Steps belong to one model.
    slow.write_text(text.replace("model_sha256: \"", "model_sha256: \"00"))
    assert "of another model" in run(*arguments).stdout


def test_a_bad_links_file_is_named(cluster, tmp_path):
    file = tmp_path / "links.yaml"
    file.write_text("workers:\n  - name: w0\n    round_trip_ms: 3\n")
    reply = run("plan", "--config", cluster.config, "--links", file)
    assert reply.returncode == 1
    assert "links.yaml:3" in reply.stderr and "round_trip_us" in reply.stderr
    file.write_text("workers: []\n")
    reply = run("plan", "--config", cluster.config, "--links", file)
    assert "coordinator.device is missing" in reply.stderr
    reply = run("plan", "--shape", "35b-a3b", "--format", "bf16", "--nodes",
                "h200", "--links", file)
    assert reply.returncode == 1 and "--config" in reply.stderr


def test_workers_that_fail_in_different_ways(make_cluster):
    cluster = make_cluster(workers=3)
    cluster.workers["w0"].signal(signal.SIGSTOP)
    cluster.workers["w1"].end()
    config = cluster.folder / "impatient.yaml"
    config.write_text(cluster.config.read_text()
                      + "deadlines: {connect_s: 1}\n")
    assert problems("--config", config) == {("w0", "hangs"),
                                            ("w1", "refused")}
    reply = run("doctor", "--quick", "--config", config)
    assert "w1: nothing listens on" in reply.stdout
    assert "conclave-worker --config FILE --name w1" in reply.stdout
    cluster.workers["w0"].signal(signal.SIGCONT)


def test_names_ports_and_models_that_do_not_fit(tmp_path):
    http, worker = free_ports(2)
    program = Program([WORKER, f"--listen=127.0.0.1:{worker}", "--name=other",
                       f"--model={MODEL}"], tmp_path / "worker.log")
    stranger = subprocess.Popen(
        ["python3", "-m", "http.server", "-b", "127.0.0.1", str(http)],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    config = tmp_path / "cluster.yaml"
    config.write_text(
        f"model: {tmp_path}/none\n"
        f"coordinator: {{listen: '127.0.0.1:{http}'}}\n"
        f"workers:\n  - {{name: w0, address: '127.0.0.1:{worker}'}}\n"
        f"  - {{name: w1, address: '127.0.0.1:{http}'}}\n"
        f"  - {{name: w2, address: 'no-such-host.invalid:7101'}}\n")
    try:
        wanted = {("coordinator", "port"), ("coordinator", "model"),
                  ("w0", "identity"), ("w1", "stranger"), ("w2", "dns"),
                  ("w2", "insecure")}
        for _ in range(20):
            found = problems("--config", config)
            if found == wanted:
                break
        assert found == wanted
    finally:
        stranger.kill()
        stranger.wait()
        program.end()


def test_tls_on_one_side_only(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days",
         "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True, timeout=PATIENCE_S)
    http, port = free_ports(2)
    plain, secure = tmp_path / "plain.yaml", tmp_path / "secure.yaml"
    plain.write_text(f"model: {MODEL}\n"
                     f"coordinator: {{listen: '127.0.0.1:{http}'}}\n"
                     f"workers:\n"
                     f"  - {{name: w0, address: '127.0.0.1:{port}'}}\n")
    secure.write_text(plain.read_text() + f"tls: {{ca: {cert}, cert: {cert}, "
                      f"key: {key}}}\n")
    for serves, asks in ((plain, secure), (secure, plain)):
        program = Program([WORKER, "--config", serves, "--name", "w0"],
                          tmp_path / f"{serves.stem}.log")
        try:
            for _ in range(50):
                if problems("--config", serves) == set():
                    break
            assert problems("--config", asks) == {("w0", "tls")}
        finally:
            program.end()


def test_what_the_command_line_says(tmp_path):
    reply = run("doctor", "--help")
    assert reply.returncode == 0 and "links.yaml" in reply.stdout
    reply = run("doctor")
    assert reply.returncode == 1 and "--config" in reply.stderr
    config = tmp_path / "cluster.yaml"
    config.write_text(f"model: {MODEL}\n"
                      f"coordinator: {{listen: '127.0.0.1:{free_ports(1)[0]}'}}"
                      "\n")
    reply = run("doctor", "--config", config, "--quick", "--out",
                tmp_path / "no" / "links.yaml")
    assert reply.returncode == 1 and "cannot be written" in reply.stderr
