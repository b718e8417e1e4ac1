"""Chunks encoded by hand are valid events whatever the text holds. That they equal vLLM's is test_short_path.py's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.sse import DONE, ChunkEncoder, quote

ENCODER = ChunkEncoder("chatcmpl-1", 'acme/"quoted"', 7, "acme/a@1")
TEXTS = st.text(st.characters(exclude_categories=("Cs",)))


def event(encoded: bytes) -> dict:  # type: ignore[type-arg]
    text = encoded.decode()
    assert text.startswith("data: ") and text.endswith("\n\n")
    assert text.count("\n") == 2 and "\r" not in text, "a line break inside an event ends it"
    parsed = json.loads(text.removeprefix("data: "))
    assert (parsed["id"], parsed["object"], parsed["created"], parsed["model"]) == (
        "chatcmpl-1",
        "chat.completion.chunk",
        7,
        'acme/"quoted"',
    )
    return parsed  # type: ignore[no-any-return]


@settings(deadline=None)  # a busy machine is no fault
@given(TEXTS)
def test_any_text_arrives_as_it_is(text: str) -> None:
    assert event(ENCODER.delta(text))["choices"][0]["delta"] == {"content": text}
    assert event(ENCODER.last(text, "stop", text))["choices"][0] == {
        "index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": "stop", "stop_reason": text, "token_ids": None,
    }  # fmt: skip


@settings(deadline=None)  # a busy machine is no fault
@given(TEXTS)
def test_quote_is_json(text: str) -> None:
    assert json.loads(quote(text)) == text


def test_role_comes_with_empty_content() -> None:
    assert event(ENCODER.role())["choices"][0]["delta"] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("stop_reason", [None, 2, "stop\nhere"])
def test_stop_reason_is_a_token_a_string_or_nothing(stop_reason: int | str | None) -> None:
    assert event(ENCODER.last("", "stop", stop_reason))["choices"][0]["stop_reason"] == stop_reason


def test_fingerprint_is_in_the_last_chunk_alone() -> None:
    assert event(ENCODER.last("x", "length", None))["system_fingerprint"] == "acme/a@1"
    assert "system_fingerprint" not in event(ENCODER.last("x", "length", None, fingerprint=False))
    assert event(ENCODER.usage(3, 4))["system_fingerprint"] == "acme/a@1"
    assert "system_fingerprint" not in event(ENCODER.delta("x"))


def test_usage_adds_up() -> None:
    chunk = event(ENCODER.usage(3, 4))
    assert chunk["choices"] == [] and chunk["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_an_empty_delta_may_be_left_out() -> None:
    assert event(ENCODER.last(None, "stop", None))["choices"][0]["delta"] == {}


def test_done_ends_the_stream() -> None:
    assert DONE == b"data: [DONE]\n\n"
