"""The port itself: scoring, models, errors, limits."""
import math
import ssl
import subprocess

import httpx
import openai
import pytest

from processes import MODEL_NAME

HELLO = [{"role": "user", "content": "Hello"}]


def test_models(cluster):
    client = cluster.client()
    models = client.models.list().data
    assert [m.id for m in models] == [MODEL_NAME]
    assert client.models.retrieve(MODEL_NAME).id == MODEL_NAME
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-4")
    assert error.value.code == "model_not_found"


def test_echo_scores_a_prompt(cluster, goldens):
    ids = goldens["story"]["ids"]
    reply = cluster.client().completions.create(
        model=MODEL_NAME, prompt=ids, echo=True, max_tokens=0, logprobs=1,
        temperature=0)
    choice = reply.choices[0]
    assert choice.text == goldens["story"]["text"]
    scores = choice.logprobs
    assert len(scores.tokens) == len(ids)
    assert "".join(scores.tokens) == choice.text
    assert scores.token_logprobs[0] is None
    assert scores.top_logprobs[0] is None
    assert all(p <= 0 for p in scores.token_logprobs[1:])
    for own, top in zip(scores.token_logprobs[1:], scores.top_logprobs[1:]):
        assert own <= max(top.values()) + 1e-6
    assert scores.text_offset == [
        sum(map(len, scores.tokens[:i])) for i in range(len(ids))]
    assert reply.usage.completion_tokens == 0


def test_logprobs_agree_between_scoring_and_generating(cluster, goldens):
    ids = goldens["add"]["ids"]
    greedy = goldens["add"]["fp32"]["greedy_ids"][:8]
    client = cluster.client()
    made = client.completions.create(
        model=MODEL_NAME, prompt=ids, max_tokens=8, logprobs=0,
        temperature=0).choices[0]
    read = client.completions.create(
        model=MODEL_NAME, prompt=ids + greedy, max_tokens=0, echo=True,
        logprobs=0, temperature=0).choices[0]
    assert made.logprobs.tokens == read.logprobs.tokens[-8:]
    for a, b in zip(made.logprobs.token_logprobs,
                    read.logprobs.token_logprobs[-8:]):
        assert math.isclose(a, b, abs_tol=1e-4)


def test_chat_logprobs(cluster):
    reply = cluster.client().chat.completions.create(
        model=MODEL_NAME, messages=HELLO, temperature=0, max_tokens=6,
        logprobs=True, top_logprobs=3,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    tokens = reply.choices[0].logprobs.content
    assert 0 < len(tokens) <= 6
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert token.token == token.top_logprobs[0].token
        assert token.token.encode() == bytes(token.bytes)


BAD_CHAT = [
    ("temperature", {"temperature": 3}),
    ("top_p", {"top_p": 0}),
    ("n", {"n": 2}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": 10 ** 8}),
    ("stop", {"stop": [1]}),
    ("seed", {"seed": "x"}),
    ("logit_bias", {"logit_bias": {"99999999": 1}}),
    ("logit_bias", {"logit_bias": {"2999999": 1}}),
    ("top_logprobs", {"top_logprobs": 3}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tools[0]", {"tools": [{"type": "function"}]}),
    ("response_format", {"response_format": {"type": "json_object"}}),
    ("chat_template_kwargs.x", {"chat_template_kwargs": {"x": 1}}),
    ("frobnicate", {"frobnicate": 1}),
    ("messages", {"messages": []}),
    ("messages[0].role", {"messages": [{"role": "king", "content": "x"}]}),
    ("messages[0].content[0]", {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "x"}}]}]}),
]


@pytest.mark.parametrize("field,more", BAD_CHAT,
                         ids=[f"{i}-{b[0]}" for i, b in enumerate(BAD_CHAT)])
def test_a_bad_field_is_named(cluster, field, more):
    reply = cluster.post("/v1/chat/completions",
                         {"model": MODEL_NAME, "messages": HELLO, **more})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["param"] == field
    assert error["message"].startswith(field + ": ")
    assert error["type"] == "invalid_request_error"


BAD_COMPLETION = [
    ("prompt", {}),
    ("prompt", {"prompt": []}),
    ("prompt", {"prompt": [2 ** 20]}),
    ("prompt", {"prompt": "word " * 200000}),
    ("max_tokens", {"prompt": "x", "max_tokens": 0}),
    ("suffix", {"prompt": "x", "suffix": "y"}),
    ("logprobs", {"prompt": "x", "logprobs": 99}),
]


@pytest.mark.parametrize("field,body", BAD_COMPLETION,
                         ids=[f"{i}-{b[0]}"
                              for i, b in enumerate(BAD_COMPLETION)])
def test_a_bad_completion_field_is_named(cluster, field, body):
    reply = cluster.post("/v1/completions", body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == field


def test_harmless_fields_are_taken(cluster):
    reply = cluster.client().chat.completions.create(
        model=MODEL_NAME, messages=HELLO, max_tokens=2, user="me",
        metadata={"a": "b"}, store=False, service_tier="auto",
        parallel_tool_calls=True, n=1)
    assert reply.choices[0].finish_reason == "length"


def test_another_model_is_not_found(cluster):
    with pytest.raises(openai.NotFoundError) as error:
        cluster.client().chat.completions.create(model="gpt-4",
                                                 messages=HELLO)
    assert error.value.code == "model_not_found"
    assert error.value.param == "model"


def test_paths_and_methods(cluster):
    reply = httpx.get(cluster.url + "/v1/nothing", timeout=10)
    assert reply.status_code == 404
    assert reply.json()["error"]["type"] == "not_found_error"
    reply = httpx.get(cluster.url + "/v1/chat/completions", timeout=10)
    assert reply.status_code == 405
    assert reply.headers["allow"] == "POST"
    assert "error" in reply.json()


@pytest.mark.parametrize("body,why", [
    (b"{\"messages\": [", "byte 14"),
    (b"{\"prompt\": \"\xff\"}", "byte 12: not UTF-8"),
    (b"{\"n\": 1, \"n\": 1}", "stands twice"),
    (b"[" * 100000, "nested deeper"),
    (b"", "byte 0"),
    (b"[]", "must be a JSON object"),
])
def test_bad_json_is_located(cluster, body, why):
    reply = httpx.post(cluster.url + "/v1/chat/completions", content=body,
                       timeout=10)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "body"
    assert why in reply.json()["error"]["message"]


def test_a_body_that_is_too_large(cluster):
    reply = cluster.post("/v1/completions", {"prompt": "x" * (9 << 20)})
    assert reply.status_code == 413
    assert "bytes" in reply.json()["error"]["message"]
    # Without a length, in chunks.
    reply = httpx.post(cluster.url + "/v1/completions", timeout=60,
                       content=(b"x" * 65536 for _ in range(160)))
    assert reply.status_code == 413


def test_metrics_and_health(cluster):
    reply = httpx.get(cluster.url + "/health", timeout=10)
    assert reply.json()["status"] == "ok"
    reply = httpx.get(cluster.url + "/metrics", timeout=10)
    assert reply.headers["content-type"].startswith("text/plain")
    assert "# TYPE conclave_http_requests_total counter" in reply.text


def test_api_key(make_cluster):
    cluster = make_cluster(
        workers=0, settings="coordinator:\n  api_key: secret\n")
    reply = httpx.get(cluster.url + "/v1/models", timeout=10)
    assert reply.status_code == 401
    with pytest.raises(openai.AuthenticationError) as error:
        cluster.client("wrong").models.list()
    assert error.value.code == "invalid_api_key"
    assert cluster.client("secret").models.list().data[0].id == MODEL_NAME
    assert httpx.get(cluster.url + "/health", timeout=10).status_code == 200


def test_https(make_cluster, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days",
         "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True, timeout=60)
    context = ssl.create_default_context(cafile=cert)
    cluster = make_cluster(
        workers=0, verify=context,
        settings="coordinator:\n  https: true\n"
                 f"tls:\n  ca: {cert}\n  cert: {cert}\n  key: {key}\n")
    with httpx.Client(verify=context, timeout=30) as client:
        for _ in range(3):
            reply = client.post(cluster.url + "/v1/completions",
                                json={"prompt": "Once", "max_tokens": 3})
            assert reply.status_code == 200
        with client.stream("POST", cluster.url + "/v1/completions",
                           json={"prompt": "Once", "max_tokens": 3,
                                 "stream": True}) as reply:
            assert list(reply.iter_lines())[-2] == "data: [DONE]"
    with pytest.raises(httpx.TransportError):
        httpx.get(cluster.url.replace("https", "http") + "/health", timeout=5)
