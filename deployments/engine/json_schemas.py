"""Which JSON schema of a request is none: asked once vLLM has refused the request, whose grammar compiler names no field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # its stubs are a package of their own
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from adapters_store.errors import InvalidRequest

MAX_SHOWN = 200


def schema_fault(request: ChatCompletionRequest) -> InvalidRequest | None:
    """What is wrong with the first schema in `request` that is not one; None when each is."""
    rules = Draft202012Validator(Draft202012Validator.META_SCHEMA)
    for field, schema in _schemas(request):
        error = next(rules.iter_errors(schema), None)
        if error is not None:
            where = ".".join(map(str, error.absolute_path))
            text = error.message if len(error.message) <= MAX_SHOWN else error.message[: MAX_SHOWN - 3] + "..."
            return InvalidRequest(f"{field} is not a JSON schema: {where or 'it'}: {text}", param=field.split(".")[0])
    return None


def _schemas(request: ChatCompletionRequest) -> Iterator[tuple[str, Any]]:
    wanted = getattr(request.response_format, "json_schema", None)
    if wanted is not None and wanted.json_schema is not None:
        yield "response_format.json_schema.schema", wanted.json_schema
    for index, tool in enumerate(request.tools or ()):
        if tool.function.parameters is not None:
            yield f"tools.{index}.function.parameters", tool.function.parameters
