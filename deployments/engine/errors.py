"""What vLLM raises, returns or writes when it will not answer, as Lorikeet's errors."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.v1.engine.exceptions import EngineDeadError

from adapters_store.errors import InternalError, InvalidRequest, LorikeetError, NotFound, Overloaded, Unavailable

logger = logging.getLogger(__name__)

ENGINE_STOPPED = "the model's engine stopped and is being restarted: try again shortly"

_BY_STATUS: dict[int, type[LorikeetError]] = {400: InvalidRequest, 404: NotFound, 422: InvalidRequest, 429: Overloaded, 503: Overloaded}
_APPENDED = re.compile(r" \(parameter=.*\)$", re.DOTALL)  # what vLLM's validation errors append to their message for their own logs
_OUR_FAULT = (TypeError, KeyError, AttributeError, AssertionError)  # vLLM would call a TypeError the client's


def from_exception(error: Exception, request_id: str) -> LorikeetError:
    """An exception of vLLM's. What is not the request's fault is logged here, and its message says nothing of the inside."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"] if "[" not in str(part))  # pydantic names wrapped validators in the path
        return InvalidRequest(f"{field or 'the request'}: {first['msg']}", param=field.split(".")[0] or None)
    if isinstance(error, EngineDeadError):
        return Unavailable(ENGINE_STOPPED)
    response = create_error_response(error)
    if response.error.code not in _BY_STATUS or isinstance(error, _OUR_FAULT):
        logger.error("chat_failed", extra={"request_id": request_id}, exc_info=error)
        return InternalError("the model failed to answer this request")
    return from_response(response)


def from_response(response: ErrorResponse) -> LorikeetError:
    """An error that vLLM's OpenAI layer returned instead of an answer."""
    info = response.error
    return _build(info.code, info.message, info.param)


def from_event(event: str) -> LorikeetError | None:
    """The error that vLLM wrote into a stream as an event, or None where `event` is none."""
    if not event.startswith('data: {"error"'):
        return None
    info = json.loads(event.removeprefix("data: "))["error"]
    return _build(info.get("code"), info.get("message") or "", info.get("param"))


def _build(code: Any, message: str, param: str | None) -> LorikeetError:
    cls = _BY_STATUS.get(code)
    if cls is None:
        return InternalError("the model failed to answer this request")
    message = _APPENDED.sub("", message)
    return cls(message, param=_field_at_fault(message, param))


def _field_at_fault(message: str, param: str | None) -> str | None:
    """The request's field: vLLM names one of its own, or only begins its message with it."""
    if param in ("input_tokens", "input_text"):
        return "messages"
    first_word = message.partition(" ")[0]
    return first_word if param is None and first_word in ChatCompletionRequest.model_fields else param
