"""What a chat request may say: each field of the contract, good and bad, and refusals that name the field and its value."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adapters_store.errors import InvalidRequest
from deployments.api.schemas import ChatRequest, parse_chat_request

HI = [{"role": "user", "content": "hi"}]

GOOD: dict[str, list[Any]] = {
    "n": [1, 128, None],
    "max_tokens": [1, 100_000, None],
    "max_completion_tokens": [1],
    "temperature": [0, 0.0, 2, 1.5],
    "top_p": [0.0001, 1, 0.5],
    "frequency_penalty": [-2, 2.0, 0],
    "presence_penalty": [-2.0, 2, 0],
    "ignore_eos": [True, False],
    "stream": [True, False, None],
    "stop": ["x", ["a", "b"], [], None],
    "seed": [0, -(2**63), 2**63 - 1],
    "logprobs": [True, False],
    "logit_bias": [{}, {"5": -100, "6": 100.0}],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}],
    "tools": [[], [{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["none", "auto", "required", {"type": "function", "function": {"name": "f"}}],
    "parallel_tool_calls": [True],
    "user": ["me"],
    "reasoning_effort": ["low"],
    "top_k": [-1, 0, 40],
    "min_p": [0, 1, 0.5],
    "repetition_penalty": [0.1, 2],
    "min_tokens": [0, 3],
    "stop_token_ids": [[], [1, 2]],
    "chat_template_kwargs": [{"a": 1}],
    "return_token_ids": [True],
    "cache_salt": ["s"],
}
BAD: dict[str, list[Any]] = {
    "n": [0, -1, 129, 1.5, "1", True, []],
    "max_tokens": [0, -5, 1.5, "10", False],
    "max_completion_tokens": [0, "3"],
    "temperature": [-0.1, 2.1, "hot", True, [], {}],
    "top_p": [0, -1, 1.1, "x"],
    "frequency_penalty": [-2.1, 2.1, "x"],
    "presence_penalty": [-2.1, 2.1, {}],
    "ignore_eos": ["yes", 1, 0],
    "stream": ["true", 1],
    "stream_options": ["x", {"include_usage": "yes"}, {"unknown": True}, {"include_usage": True}],  # the last: without stream
    "stop": [5, {"a": 1}, [1], ["x"] * 17],
    "seed": [2**63, -(2**63) - 1, 1.5, "s"],
    "logprobs": [5, "yes"],
    "top_logprobs": [-1, 21, 1.5, 5],  # the last: without logprobs
    "logit_bias": [{"5": 101}, {"5": -101}, {"5": "x"}, [], "x"],
    "response_format": ["json", 1],
    "tools": [{}, "x", [1], [{}] * 129],
    "tool_choice": ["maybe", 1],
    "user": [5, "x" * 513],
    "top_k": [-2, 1.5],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, -1, 2.1],
    "min_tokens": [-1],
    "stop_token_ids": ["x", ["a"]],
    "truncate_prompt_tokens": [-2],
    "prompt_logprobs": [21],
    "add_generation_prompt": ["no"],
    "cache_salt": ["", 5],
    "model": ["", 5, None, "x" * 513],
    "messages": [[], 5, None, [5], [[]], [{}], [{"role": "user"}], [{"role": 5, "content": "x"}], [{"content": "x"}]],
}


def parse(**fields: Any) -> ChatRequest:
    return parse_chat_request(json.dumps({"model": "m", "messages": HI, **fields}).encode())


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_value_is_taken_and_reaches_the_engine(field: str, value: Any) -> None:
    engine = json.loads(parse(**{field: value}).for_engine())
    if value is None or field == "user":
        assert field not in engine
    else:
        assert engine[field] == value


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(**{field: value})
    assert raised.value.param == field
    assert field in raised.value.message or field == "messages"
    assert len(raised.value.message) < 400
    assert "pydantic" not in raised.value.message and "ValidationError" not in raised.value.message


@pytest.mark.parametrize(("field", "value", "said"), [("temperature", 9.5, "9.5"), ("top_p", "warm", '"warm"'), ("n", 0, "0")])
def test_refusal_shows_the_value_and_what_is_allowed(field: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(**{field: value})
    assert re.match(f"{field} is {re.escape(said)}: .+", raised.value.message), raised.value.message


@pytest.mark.parametrize("field", ["tempature", "functions", "modalities", "best_of", "prompt", "request_id", "kv_transfer_params"])
def test_a_field_that_nothing_serves_is_refused_by_name(field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{field} is not a field that is served here") as raised:
        parse(**{field: 1})
    assert raised.value.param == field


@pytest.mark.parametrize("body", [b"", b"{", b"nonsense", b'{"model": "m",}', b"\xff\xfe", b'{"model": "m"} trailing'])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        parse_chat_request(body)


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"5", b"null"])
def test_what_is_not_an_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        parse_chat_request(body)


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_field_is_named(field: str) -> None:
    body = {"model": "m", "messages": HI}
    del body[field]
    with pytest.raises(InvalidRequest, match=f"{field} is missing") as raised:
        parse_chat_request(json.dumps(body).encode())
    assert raised.value.param == field


def test_deeply_nested_json_is_refused_not_crashed_on() -> None:
    with pytest.raises(InvalidRequest):
        parse_chat_request(b'{"model": "m", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(number: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_chat_request(f'{{"model": "m", "messages": "hi", "temperature": {number}}}'.encode())


def test_bare_strings_are_user_messages() -> None:
    assert parse(messages="hello").messages == [{"role": "user", "content": "hello"}]
    mixed = parse(messages=["one", {"role": "assistant", "content": "two"}, "three"]).messages
    assert [message["role"] for message in mixed] == ["user", "assistant", "user"]


def test_an_assistant_message_may_be_without_content() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": []}
    assert parse(messages=[*HI, calls, {"role": "tool", "content": "4", "tool_call_id": "1"}]).messages[1] == calls


def test_unset_fields_do_not_reach_the_engine() -> None:
    assert json.loads(parse().for_engine()) == {"messages": HI}


def test_the_engine_never_hears_the_clients_name_for_the_model() -> None:
    assert "model" not in json.loads(parse(model="acme/support", user="me").for_engine())


def test_every_field_of_the_table_in_the_docs_is_taken() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", page, re.M))
    assert documented & set(ChatRequest.model_fields), "docs/api.md has no table of fields"
    assert {"model", "messages", "n", "max_tokens", "temperature", "top_p", "ignore_eos", "stream"} <= documented
