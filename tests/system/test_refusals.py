"""Chats and routes that are refused: each with its status, OpenAI's error shape, and a message that names the field, value and remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import pytest

from deployments.api.schemas import ChatRequest
from tests.system.refused import assert_refused
from tests.system.stack import BASE, CONTEXT, TINY, Stack

CHAT = "chat/completions"
GOOD: dict[str, Any] = {"model": TINY, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}

OUT_OF_RANGE: dict[str, tuple[Any, ...]] = {
    "n": (0, -1, 129, 1.5, "1", True),
    "max_tokens": (0, -1, 1.5, "16", True),
    "max_completion_tokens": (0, -1, 1.5, "16", True),
    "temperature": (-0.1, 2.1, "1", True, float("nan"), float("inf")),
    "top_p": (0, -0.1, 1.1, 123, "1", float("nan")),
    "frequency_penalty": (-2.1, 2.1, "0", float("nan")),
    "presence_penalty": (-2.1, 2.1, "0", float("-inf")),
    "seed": (2**63, -(2**63) - 1, 0.5, "7"),
    "top_logprobs": (-1, 21, 1.5, "3"),
    "logit_bias": ({"5": 100.5}, {"5": -101}, {"5": "1"}, {"5": None}, [5], "5"),
    "top_k": (-2, 1.5, "4"),
    "min_p": (-0.1, 1.1, "0"),
    "repetition_penalty": (0, -1, 2.1, "1", float("nan")),
    "min_tokens": (-1, 1.5, "1"),
    "truncate_prompt_tokens": (-2, 1.5, "1"),
    "prompt_logprobs": (-1, 21, 1.5, "1"),
    "length_penalty": ("1", float("nan"), float("inf")),
    "stop_token_ids": ([1.5], ["1"], 1, list(range(4097))),
    "allowed_token_ids": ([1.5], "1", {}),
    "logprob_token_ids": ([1.5], "1", {}),
}  # fmt: skip

WRONG: dict[str, tuple[Any, ...]] = {
    "model": (None, "", 7, "x" * 513),
    "messages": (None, [], {}, 7, [7], [{}], [{"role": "user"}], [{"content": "Hi"}], [{"role": 7, "content": "Hi"}]),
    "stop": (7, [7], {}, ["a"] * 17),
    "stream_options": ("x", {"include_usage": 1}, {"nonsense": True}),
    "tools": ("x", {}, ["x"], [TOOL] * 129),
    "tool_choice": ("sometimes", 7, []),
    "response_format": ("json", [], 7),
    "user": (7, "x" * 513),
    **dict.fromkeys(("stream", "ignore_eos", "logprobs", "echo", "parallel_tool_calls"), ("true", 1, [])),
    **dict.fromkeys(("temprature", "max_token", "functions", "loras", "lora_request", "vllm_xargs"), (1, {})),
}


@pytest.fixture(scope="module")
def http(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as client:
        yield client


def refuse_all(stack: Stack, http: httpx.Client, field: str, values: tuple[Any, ...]) -> None:
    for value in values:
        body = json.dumps({**GOOD, "stream": field == "stream_options", field: value})  # json.dumps says NaN, which httpx does not
        response = http.post(CHAT, content=body)
        assert_refused(stack, response, 400, rf"\b{field}\b|^message \d|^stream_options", param=field)


@pytest.mark.parametrize("field", OUT_OF_RANGE)
def test_a_number_out_of_its_range_or_type_is_refused(stack: Stack, http: httpx.Client, field: str) -> None:
    refuse_all(stack, http, field, OUT_OF_RANGE[field])


@pytest.mark.parametrize("field", WRONG)
def test_a_field_of_the_wrong_type_or_of_no_meaning_is_refused(stack: Stack, http: httpx.Client, field: str) -> None:
    refuse_all(stack, http, field, WRONG[field])


def test_the_table_holds_every_field_of_numbers() -> None:
    def numbers(annotation: Any) -> bool:
        return annotation in (int, float) or any(numbers(inner) for inner in get_args(annotation))

    assert {name for name, field in ChatRequest.model_fields.items() if numbers(field.annotation)} == OUT_OF_RANGE.keys()


def test_the_message_says_the_value_and_what_is_allowed(stack: Stack, http: httpx.Client) -> None:
    response = http.post(CHAT, json={**GOOD, "temperature": 2.5})
    assert_refused(stack, response, 400, r"^temperature is 2\.5: .*less than or equal to 2", param="temperature")
    response = http.post(CHAT, json={**GOOD, "temprature": 1})
    assert_refused(stack, response, 400, "^temprature is not a field that is served here: leave it out", param="temprature")
    response = http.post(CHAT, json={"model": TINY})
    assert_refused(stack, response, 400, "^messages is missing", param="messages")


@pytest.mark.parametrize("headers", [{}, {"authorization": "Basic eA=="}, {"authorization": "Bearer"}, {"x-api-key": "x"}])
def test_no_key_is_401_and_says_which_header(stack: Stack, headers: dict[str, str]) -> None:
    for method, path in (
        ("POST", CHAT),
        ("GET", "models"),
        ("GET", "adapters"),
        ("POST", "adapters/a/b/versions"),
        ("DELETE", "adapters/a/b"),
    ):
        response = httpx.request(method, f"{stack.api}/{path}", headers=headers, timeout=60)
        assert_refused(stack, response, 401, "Authorization: Bearer <key>")
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_wrong_key_is_401_whatever_is_asked(stack: Stack) -> None:
    for wrong in ("lk-wrong", stack.key + "x", stack.key[:-1], stack.key.upper()):
        response = httpx.post(f"{stack.api}/{CHAT}", json={"nonsense": 1}, headers={"authorization": f"Bearer {wrong}"}, timeout=60)
        assert_refused(stack, response, 401, "not known here")
        assert wrong not in response.text


UNKNOWN_MODELS = {
    "nobody/nothing": "'nobody/nothing' does not exist: GET /api/v1/models",
    "gpt-4": "'gpt-4' is neither a base model nor an adapter",
    "demo/pirate:staging": "'demo/pirate' has no alias 'staging': it has production",
    "demo/pirate@00000000": "demo/pirate@00000000 does not exist",
    "demo/pirate@12": "version '12' is not valid: give 8 to 64",
    "../../etc/passwd": "owner '..' is not valid",
    "demo/pirate/x": "'pirate/x' is not valid",
    "demo/": "name '' is not valid",
}


@pytest.mark.parametrize("name", UNKNOWN_MODELS)
def test_an_unknown_model_is_404_and_says_what_there_is(stack: Stack, http: httpx.Client, name: str) -> None:
    assert_refused(stack, http.post(CHAT, json={**GOOD, "model": name}), 404, re.escape(UNKNOWN_MODELS[name]), param="model")
    assert_refused(
        stack, http.post(CHAT, json={**GOOD, "model": name, "stream": True}), 404, re.escape(UNKNOWN_MODELS[name]), param="model"
    )


@pytest.mark.parametrize("body", [b"", b"{", b"{nope}", b"\xff\xfe", b'{"model": "tiny"', b"model=tiny"])
def test_a_body_that_is_not_json_is_refused(stack: Stack, http: httpx.Client, body: bytes) -> None:
    assert_refused(stack, http.post(CHAT, content=body), 400, "^the request body is not valid JSON: ")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"7"])
def test_a_body_that_is_not_an_object_is_refused(stack: Stack, http: httpx.Client, body: bytes) -> None:
    assert_refused(stack, http.post(CHAT, content=body), 400, "is not a JSON object: send {")


def test_a_body_over_the_limit_is_413(stack: Stack, http: httpx.Client) -> None:
    body = json.dumps({**GOOD, "messages": "x" * (5 << 20)}).encode()
    assert_refused(stack, http.post(CHAT, content=body), 413, "larger than 4194304 bytes")
    assert_refused(stack, http.post(CHAT, content=iter([body[: 1 << 20]] * 5)), 413, "larger than 4194304 bytes")


def test_fields_that_contradict_each_other_are_refused(stack: Stack, http: httpx.Client) -> None:
    response = http.post(CHAT, json={**GOOD, "stream_options": {"include_usage": True}})
    assert_refused(stack, response, 400, "stream_options is given without stream", param="stream_options")
    response = http.post(CHAT, json={**GOOD, "top_logprobs": 2})
    assert_refused(stack, response, 400, "top_logprobs is given without logprobs", param="top_logprobs")
    response = http.post(CHAT, json={**GOOD, "tool_choice": "required"})
    assert_refused(stack, response, 400, "`tools` must be set", param="tool_choice")


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_context_too_long_is_refused_with_the_numbers(stack: Stack, http: httpx.Client, streamed: bool) -> None:
    body = {**GOOD, "stream": streamed}
    too_long = [{"role": "user", "content": "word " * 3000}]
    response = http.post(CHAT, json={**body, "messages": too_long})
    assert_refused(stack, response, 400, rf"maximum context length is {CONTEXT} tokens.*reduce the length", param="messages")
    response = http.post(CHAT, json={"model": TINY, "stream": streamed, "messages": too_long})
    assert_refused(stack, response, 400, rf"maximum context length is {CONTEXT} tokens.*reduce the length", param="messages")
    for field in ("max_tokens", "max_completion_tokens"):
        response = http.post(CHAT, json={"model": TINY, "stream": streamed, "messages": "Hi", field: CONTEXT + 1})
        assert_refused(stack, response, 400, rf"{field}={CONTEXT + 1} .*request fewer", param=field)
    response = http.post(CHAT, json={**body, "max_tokens": CONTEXT - 1})
    assert_refused(stack, response, 400, rf"you requested {CONTEXT - 1} output tokens and your prompt contains", param="messages")


BAD_SCHEMA = {"type": "nonsense"}
MALFORMED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a tool that is empty": ({"tools": [{}]}, r"^tools\.0\.function", "tools"),
    "a tool without its function": ({"tools": [{"type": "function"}]}, r"^tools\.0\.function", "tools"),
    "a function without a name": ({"tools": [{"type": "function", "function": {}}]}, r"^tools\.0\.function\.name", "tools"),
    "a choice that is no tool": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "does not match any", "tool_choice"
    ),
    "parameters that are no schema": (
        {"tools": [{"type": "function", "function": {"name": "w", "parameters": BAD_SCHEMA}}], "tool_choice": "required"},
        r"^tools\.0\.function\.parameters is not a JSON schema: .*nonsense", "tools",
    ),
    "an unknown format": ({"response_format": {"type": "xml"}}, r"^response_format\.type", "response_format"),
    "a format without its schema": (
        {"response_format": {"type": "json_schema"}},
        "'json_schema' field must be provided",
        "response_format",
    ),
    "a schema that is none": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": BAD_SCHEMA}}},
        r"^response_format\.json_schema\.schema is not a JSON schema: .*nonsense", "response_format",
    ),
    "a bias for no token": ({"logit_bias": {"the": 1}}, "logit_bias", "logit_bias"),
    "a bias beyond the vocabulary": ({"logit_bias": {"99999999": 1}}, "99999999", "logit_bias"),
    "an empty stop": ({"stop": [""]}, "stop cannot contain an empty string", "stop"),
    "more tokens at least than at most": ({"min_tokens": 9}, "min_tokens must be less than or equal to max_tokens=2, got 9", "min_tokens"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "says", "param"), MALFORMED.values(), ids=MALFORMED)
def test_what_only_the_engine_can_judge_is_refused_by_field_too(
    stack: Stack, http: httpx.Client, fields: dict[str, Any], says: str, param: str
) -> None:
    for streamed in (False, True):
        response = http.post(CHAT, json={**GOOD, "model": BASE, "stream": streamed, **fields})
        assert_refused(stack, response, 400, says, param=param)


def test_unknown_routes_are_404_and_wrong_methods_405(stack: Stack, http: httpx.Client) -> None:
    for path in ("nowhere", "chat", "completions", "adapters/a", "adapters/a/b/versions/c/d/e"):
        assert_refused(stack, http.get(path), 404, f"/api/v1/{path} here: see /docs", code="not_found")
    for path in ("/", "/v1", "/api", "/api/v2/models"):
        assert_refused(stack, httpx.get(stack.url + path, timeout=60), 404, "see /docs", code="not_found")
    for method, path in (("GET", CHAT), ("POST", "models"), ("DELETE", "models"), ("PUT", "adapters"), ("PUT", "adapters/demo/pirate")):
        response = http.request(method, path)
        assert_refused(stack, response, 405, f"^{method} is not allowed on", code="method_not_allowed")
        assert response.headers["allow"]


BAD_QUERIES = {
    "models?limit=x": ("limit is 'x'", "limit"),
    "models?limit=0": ("limit is '0'", "limit"),
    "models?limit=1001": ("limit is '1001'", "limit"),
    "models?after=zz": ("after is 'zz'", "after"),
    "adapters?limit=-1": ("limit is '-1'", "limit"),
    "adapters?after=../..": (r"after is '\.\./\.\.'", "after"),
    "adapters?owner=..": (r"owner '\.\.' is not valid", "owner"),
}


@pytest.mark.parametrize("query", BAD_QUERIES)
def test_a_bad_query_parameter_is_refused_by_name(stack: Stack, http: httpx.Client, query: str) -> None:
    says, param = BAD_QUERIES[query]
    assert_refused(stack, http.get(query), 400, says, param=param)
