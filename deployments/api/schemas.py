"""What a chat request may say: api.md's table and every further field that vLLM serves. Anything else is refused by name.

Parsed once, at the edge: bytes -> `ChatRequest` -> `for_engine()`, the JSON that the replica hands to vLLM. Deeper shapes (tools,
message parts, JSON schemas) are vLLM's to check, at the replica.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from adapters_store.errors import InvalidRequest

MAX_CHOICES = 128
MAX_STOPS = 16

_Int = Annotated[int, Field(strict=True)]
_Float = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Bool = Annotated[bool, Field(strict=True)]
_Penalty = Annotated[float, Field(strict=True, ge=-2.0, le=2.0)]
_TokenIds = Annotated[list[_Int], Field(max_length=4096)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: _Bool | None = None
    continuous_usage_stats: _Bool | None = None


class ChatRequest(BaseModel):
    """One chat completion, as a client asks for it. `null` means the default, as in OpenAI's API."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: Annotated[str, Field(strict=True, min_length=1, max_length=512)]
    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]
    n: Annotated[int, Field(strict=True, ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(strict=True, ge=1)] | None = None
    temperature: Annotated[float, Field(strict=True, ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    ignore_eos: _Bool | None = None
    stream: _Bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1)] | None = None
    logprobs: _Bool | None = None
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    logit_bias: dict[str, Annotated[float, Field(strict=True, ge=-100.0, le=100.0)]] | None = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: _Bool | None = None
    user: Annotated[str, Field(strict=True, max_length=512)] | None = None
    reasoning_effort: str | None = None
    # vLLM's own
    top_k: Annotated[int, Field(strict=True, ge=-1)] | None = None
    min_p: Annotated[float, Field(strict=True, ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Field(strict=True, gt=0.0, le=2.0)] | None = None
    min_tokens: Annotated[int, Field(strict=True, ge=0)] | None = None
    stop_token_ids: _TokenIds | None = None
    include_stop_str_in_output: _Bool | None = None
    skip_special_tokens: _Bool | None = None
    spaces_between_special_tokens: _Bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(strict=True, ge=-1)] | None = None
    allowed_token_ids: _TokenIds | None = None
    bad_words: Annotated[list[str], Field(max_length=256)] | None = None
    prompt_logprobs: Annotated[int, Field(strict=True, ge=0, le=20)] | None = None
    logprob_token_ids: _TokenIds | None = None
    use_beam_search: _Bool | None = None
    length_penalty: _Float | None = None
    echo: _Bool | None = None
    add_generation_prompt: _Bool | None = None
    continue_final_message: _Bool | None = None
    add_special_tokens: _Bool | None = None
    documents: list[dict[str, str]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    include_reasoning: _Bool | None = None
    return_token_ids: _Bool | None = None
    return_tokens_as_token_ids: _Bool | None = None
    cache_salt: Annotated[str, Field(strict=True, min_length=1, max_length=1024)] | None = None

    @field_validator("messages", mode="before")
    @classmethod
    def _bare_strings(cls, messages: Any) -> Any:
        """The reference also allows a string, or strings in the list: each is a user's message."""
        if isinstance(messages, str):
            messages = [messages]
        if isinstance(messages, list):
            return [{"role": "user", "content": message} if isinstance(message, str) else message for message in messages]
        return messages

    @field_validator("messages")
    @classmethod
    def _roles(cls, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for index, message in enumerate(messages):
            if not isinstance(message.get("role"), str):
                raise ValueError(f"message {index} has no role: give each message a role (system, user, assistant, tool) and content")
            if message["role"] != "assistant" and message.get("content") is None:
                raise ValueError(f"message {index} has no content: give each message a role and content")
        return messages

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is given without stream: set stream to true, or leave stream_options out")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is given without logprobs: set logprobs to true, or leave top_logprobs out")
        if self.chat_template_kwargs and "chat_template" in self.chat_template_kwargs:
            raise ValueError(
                "chat_template_kwargs holds a chat_template: publish it with the adapter, as chat_template.jinja in its folder"
            )
        return self

    def for_engine(self) -> bytes:
        """The request as vLLM reads it: only what was set."""
        return self.model_dump_json(exclude_none=True, exclude={"model", "user"}).encode()


def parse_chat_request(body: bytes) -> ChatRequest:
    """Parse and check a request body. Raises InvalidRequest naming the field, its value and what is allowed."""
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None


def _explain(error: ValidationError) -> InvalidRequest:
    details = error.errors(include_url=False)
    first = details[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "not JSON")
        return InvalidRequest(f"the request body is not valid JSON: {reason}")
    field = ".".join(str(part) for part in first["loc"] if not _is_union_branch(part))
    name = field.split(".")[0] if field else None
    if first["type"] == "extra_forbidden":
        return InvalidRequest(f"{field} is not a field that is served here: leave it out (see /docs for those that are)", param=name)
    if first["type"] == "missing":
        return InvalidRequest(f"{field} is missing: it is required", param=name)
    if first["type"] in ("model_type", "model_attributes_type") and not field:
        return InvalidRequest('the request body is not a JSON object: send {"model": …, "messages": […]}')
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return InvalidRequest(message, param=name or message.split()[0])
    return InvalidRequest(f"{field} is {_shown(first['input'])}: {_remedy(details)}", param=name)


def _is_union_branch(part: int | str) -> bool:
    """Pydantic puts the branch of a union ('str', 'list[str]', …) into the path; it is no field."""
    return isinstance(part, str) and (part in ("str", "dict[str,any]") or "[" in part)


def _remedy(details: list[ErrorDetails]) -> str:
    """What would be allowed, from every branch that was tried."""
    messages = dict.fromkeys(detail["msg"] for detail in details if detail["loc"][:1] == details[0]["loc"][:1])
    return " or ".join(message[0].lower() + message[1:] for message in messages)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
