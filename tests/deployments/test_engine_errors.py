"""deployments/engine: what vLLM says of a request that it refuses, as an error that names the client's field. No engine is started."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from adapters_store.errors import InternalError, InvalidRequest, Unavailable
from deployments.engine.errors import from_event, from_exception
from deployments.engine.json_schemas import schema_fault

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


def parse(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate_json(json.dumps({**HI, **fields}))


@pytest.mark.parametrize(
    ("fields", "says", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type: ", "response_format"),
        ({"tools": [{"type": "function"}]}, "tools.0.function: ", "tools"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name: ", "tools"),
    ],
)
def test_a_shape_that_vllm_refuses_names_the_clients_field(fields: dict[str, Any], says: str, param: str) -> None:
    with pytest.raises(ValidationError) as refused:
        parse(**fields)
    error = from_exception(refused.value, "r1")
    assert isinstance(error, InvalidRequest)
    assert error.message.startswith(says)
    assert error.param == param


@pytest.mark.parametrize(
    ("raised", "message", "param"),
    [
        (VLLMValidationError("prompt is too long.", parameter="input_tokens", value=9), "prompt is too long.", "messages"),
        (VLLMValidationError("ask for fewer.", parameter="max_tokens", value=9), "ask for fewer.", "max_tokens"),
        (ValueError("stop cannot contain an empty string."), "stop cannot contain an empty string.", "stop"),
        (ValueError("min_tokens must be 0 (or more)"), "min_tokens must be 0 (or more)", "min_tokens"),
        (ValueError("something else is wrong"), "something else is wrong", None),
    ],
)
def test_the_engines_refusals_name_the_field_once(raised: Exception, message: str, param: str | None) -> None:
    error = from_exception(raised, "r1")
    assert isinstance(error, InvalidRequest)
    assert (error.message, error.param) == (message, param)


@pytest.mark.parametrize("bug", [TypeError("x"), KeyError("x"), RuntimeError("at /opt/inside.py"), AssertionError()])
def test_a_bug_says_nothing_of_the_inside(bug: Exception) -> None:
    error = from_exception(bug, "r1")
    assert isinstance(error, InternalError)
    assert error.message == "the model failed to answer this request"


def test_a_dead_engine_is_unavailable_not_a_fault_of_the_request() -> None:
    assert isinstance(from_exception(EngineDeadError(), "r1"), Unavailable)


def test_an_error_in_a_stream_is_read_like_the_others() -> None:
    event = {"error": {"message": "stop is bad. (parameter=stop, value=)", "type": "BadRequestError", "param": "stop", "code": 400}}
    error = from_event(f"data: {json.dumps(event)}\n\n")
    assert isinstance(error, InvalidRequest)
    assert (error.message, error.param) == ("stop is bad.", "stop")
    assert from_event('data: {"id":"chatcmpl-1"}\n\n') is None
    assert from_event("data: [DONE]\n\n") is None


BAD = {"type": "object", "properties": {"a": {"type": "nonsense"}}}
GOOD = {"type": "object", "properties": {"a": {"type": "integer", "x-note": 1}}}


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


def tools(*values: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": value}} for value in values]}


@pytest.mark.parametrize(
    ("fields", "says", "param"),
    [
        (schema(BAD), "response_format.json_schema.schema is not a JSON schema: properties.a.type: 'nonsense'", "response_format"),
        (tools(GOOD, BAD), "tools.1.function.parameters is not a JSON schema: properties.a.type: 'nonsense'", "tools"),
    ],
)
def test_a_schema_that_is_none_is_found_and_named(fields: dict[str, Any], says: str, param: str) -> None:
    fault = schema_fault(parse(**fields))
    assert fault is not None
    assert fault.message.startswith(says)
    assert fault.param == param


@pytest.mark.parametrize("fields", [{}, schema(GOOD), tools(GOOD, {}), {"response_format": {"type": "json_object"}}])
def test_good_schemas_are_not_blamed(fields: dict[str, Any]) -> None:
    assert schema_fault(parse(**fields)) is None
