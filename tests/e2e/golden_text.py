"""What the official implementation said, in the API's terms."""
import json

END = "<|im_end|>"


def expected_text(golden):
    """The greedy text up to the end token, and the finish reason."""
    text = golden["fp32"]["greedy_text"]
    if golden["fp32"]["eos_at"] is None:
        return text, "length"
    return text.split(END)[0].split("<|endoftext|>")[0], "stop"


def tokens_of(golden):
    return len(golden["fp32"]["greedy_ids"])


def api_messages(golden):
    """The golden's messages as OpenAI's API wants them: arguments as text."""
    messages = json.loads(json.dumps(golden["messages"]))
    for message in messages:
        for i, call in enumerate(message.get("tool_calls") or []):
            call["id"] = f"call_{i}"
            call["function"]["arguments"] = json.dumps(
                call["function"]["arguments"])
        if message["role"] == "tool":
            message["tool_call_id"] = "call_0"
    return messages


def chat_fields(golden):
    fields = {
        "model": "qwen3.5-moe-tiny",
        "messages": api_messages(golden),
        "temperature": 0,
        "max_tokens": tokens_of(golden),
        "extra_body": {"chat_template_kwargs": {
            "enable_thinking": golden["enable_thinking"]}},
    }
    if golden["tools"]:
        fields["tools"] = golden["tools"]
    return fields
