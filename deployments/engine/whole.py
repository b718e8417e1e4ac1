"""A chat completion that is not streamed, encoded by hand: the short path's half of what vLLM's pydantic objects do.

Field for field what vLLM 0.29 answers to a plain text chat (`tests/system/test_short_path.py` holds the two equal).
"""

from __future__ import annotations

import json

from deployments.engine.sse import quote


def encode_whole(
    completion_id: str,
    model: str,
    created: int,
    fingerprint: str,
    text: str,
    finish_reason: str,
    stop_reason: int | str | None,
    prompt_tokens: int,
    completion_tokens: int,
) -> bytes:
    """The whole body of an answer of one choice."""
    total_tokens = prompt_tokens + completion_tokens
    return (
        f'{{"id":"{completion_id}","object":"chat.completion","created":{created},"model":{quote(model)},"choices":[{{"index":0,'
        f'"message":{{"role":"assistant","content":{quote(text)},"refusal":null,"annotations":null,"audio":null,"function_call":null,'
        f'"reasoning":null}},"logprobs":null,"finish_reason":{quote(finish_reason)},'
        f'"stop_reason":{json.dumps(stop_reason, ensure_ascii=False)},"token_ids":null,"routed_experts":null}}],"service_tier":null,'
        f'"system_fingerprint":{quote(fingerprint)},"usage":{{"prompt_tokens":{prompt_tokens},"total_tokens":{total_tokens},'
        f'"completion_tokens":{completion_tokens},"prompt_tokens_details":null,"completion_tokens_details":null}},"prompt_logprobs":null,'
        '"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}'
    ).encode()
