"""Replies: the official client, goldens through HTTP, several clients."""
import concurrent.futures
import json

import pytest

from golden_text import chat_fields, expected_text, tokens_of
from processes import MODEL_NAME

NAMES = ["len1", "len2", "len63", "len64", "len65", "len129", "story", "add",
         "tool_call", "tool_answer", "multi_turn", "long"]


def complete(cluster, golden, **more):
    return cluster.client().completions.create(
        model=MODEL_NAME, prompt=golden["ids"], temperature=0,
        max_tokens=tokens_of(golden), **more)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_golden(cluster, goldens, name):
    text, finish = expected_text(goldens[name])
    reply = complete(cluster, goldens[name])
    assert reply.choices[0].text == text
    assert reply.choices[0].finish_reason == finish
    assert reply.usage.prompt_tokens == len(goldens[name]["ids"])


@pytest.mark.parametrize("name", ["len1", "story", "multi_turn"])
def test_text_prompt_is_the_same_as_its_ids(cluster, goldens, name):
    reply = cluster.client().completions.create(
        model=MODEL_NAME, prompt=goldens[name]["text"], temperature=0,
        max_tokens=tokens_of(goldens[name]))
    assert reply.choices[0].text == expected_text(goldens[name])[0]
    assert reply.usage.prompt_tokens == len(goldens[name]["ids"])


def test_chat_without_thinking(cluster, goldens):
    reply = cluster.client().chat.completions.create(
        **chat_fields(goldens["story"]))
    message = reply.choices[0].message
    text = expected_text(goldens["story"])[0]
    assert message.content == text.strip()
    assert message.reasoning_content is None
    assert message.role == "assistant"
    assert reply.model == MODEL_NAME
    assert reply.usage.total_tokens == \
        reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0


def test_chat_with_thinking(cluster, goldens):
    reasoning, content = expected_text(goldens["add"])[0].split("</think>")
    reply = cluster.client().chat.completions.create(
        **chat_fields(goldens["add"]))
    message = reply.choices[0].message
    assert message.reasoning_content.strip() == reasoning.strip()
    assert message.content.strip() == content.strip()
    assert "43" in message.content
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens_details.reasoning_tokens > 0


def gather(stream):
    """A stream summed up: content, reasoning, calls, finish, usage."""
    content, reasoning, calls, finish, usage = "", "", {}, None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            delta = choice.delta
            content += delta.content or ""
            reasoning += getattr(delta, "reasoning_content", None) or ""
            for call in delta.tool_calls or []:
                one = calls.setdefault(call.index, {"id": "", "name": "",
                                                    "arguments": ""})
                one["id"] += call.id or ""
                one["name"] += call.function.name or ""
                one["arguments"] += call.function.arguments or ""
            finish = choice.finish_reason or finish
    return content, reasoning, calls, finish, usage


@pytest.mark.parametrize("name", ["story", "add", "tool_call", "tool_answer",
                                  "multi_turn"])
def test_streamed_is_whole(cluster, goldens, name):
    client = cluster.client()
    fields = chat_fields(goldens[name])
    whole = client.chat.completions.create(**fields)
    message = whole.choices[0].message
    content, reasoning, calls, finish, usage = gather(
        client.chat.completions.create(
            stream=True, stream_options={"include_usage": True}, **fields))
    assert content == (message.content or "")
    assert reasoning == (message.reasoning_content or "")
    assert [(c["name"], c["arguments"]) for c in calls.values()] == \
        [(c.function.name, c.function.arguments)
         for c in message.tool_calls or []]
    assert all(c["id"] for c in calls.values())
    assert finish == whole.choices[0].finish_reason
    assert usage == whole.usage


def test_tool_call(cluster, goldens):
    reply = cluster.client().chat.completions.create(
        **chat_fields(goldens["tool_call"]))
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert len(choice.message.tool_calls) == 1
    call = choice.message.tool_calls[0]
    assert call.type == "function" and call.id
    assert call.function.name == "add"
    assert json.loads(call.function.arguments) == {"a": 4917, "b": 4884}


def test_tool_answer_is_used(cluster, goldens):
    reply = cluster.client().chat.completions.create(
        **chat_fields(goldens["tool_answer"]))
    assert reply.choices[0].finish_reason == "stop"
    text = expected_text(goldens["tool_answer"])[0]
    assert reply.choices[0].message.content.strip() == \
        text.split("</think>")[-1].strip()


def test_tool_choice_none_calls_nothing(cluster, goldens):
    reply = cluster.client().chat.completions.create(
        tool_choice="none", **chat_fields(goldens["tool_call"]))
    assert not reply.choices[0].message.tool_calls


def test_soft_switch_decides_and_kwargs_win(cluster):
    def reasoning(text, **kwargs):
        reply = cluster.client().chat.completions.create(
            model=MODEL_NAME, temperature=0, max_tokens=48,
            messages=[{"role": "user", "content": text}],
            extra_body={"chat_template_kwargs": kwargs} if kwargs else None)
        return reply.choices[0].message.reasoning_content
    assert reasoning("/think What is 31 plus 12?")
    assert reasoning("/nothink What is 31 plus 12?") is None
    assert reasoning("/no_think What is 31 plus 12?") is None
    assert reasoning("/nothink What is 31 plus 12?", enable_thinking=True)
    assert reasoning("/think What is 31 plus 12?",
                     enable_thinking=False) is None


def test_many_clients_get_what_one_gets(cluster, goldens):
    names = [NAMES[i % len(NAMES)] for i in range(16)]

    def run(name):
        return complete(cluster, goldens[name]).choices[0].text
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(run, names))
    for name, text in zip(names, texts):
        assert text == expected_text(goldens[name])[0], name


def test_several_prompts_are_several_choices(cluster, goldens):
    names = ["len1", "story", "add"]
    reply = cluster.client().completions.create(
        model=MODEL_NAME, prompt=[goldens[n]["ids"] for n in names],
        temperature=0, max_tokens=64)
    assert [c.index for c in reply.choices] == [0, 1, 2]
    for name, choice in zip(names, reply.choices):
        assert choice.text == expected_text(goldens[name])[0]


def test_stop_strings_end_a_reply(cluster, goldens):
    text = expected_text(goldens["story"])[0]
    word = text.split()[5]
    reply = complete(cluster, goldens["story"], stop=[word])
    assert reply.choices[0].text == text[:text.index(word)]
    assert reply.choices[0].finish_reason == "stop"


def test_a_seed_repeats(cluster):
    def say(seed):
        return cluster.client().completions.create(
            model=MODEL_NAME, prompt="Once upon a time", max_tokens=24,
            temperature=1.5, seed=seed).choices[0].text
    assert say(7) == say(7)
    assert len({say(seed) for seed in range(6)}) > 1
