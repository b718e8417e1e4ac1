"""The full path: vLLM's own OpenAI layer, for every field that it serves (tools, logprobs, JSON schema, n, …).

vLLM answers with the name it knows an adapter by, `owner/name@version`. The client asked by another name and is told the version in
`system_fingerprint`: two small subclasses put both right, per request, by a context variable.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.chat_utils import load_chat_template
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.lora.request import LoRARequest
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.v1.engine.async_llm import AsyncLLM

from deployments.engine import errors
from deployments.engine.json_schemas import schema_fault
from deployments.messages import ChatCall

DEFAULT_MAX_TOKENS = 256  # the contract's default, cut to what the context still holds


@dataclass(frozen=True, slots=True)
class _Answering:
    """The request that the current task answers."""

    model: str
    version: str
    lora: LoRARequest | None


_answering: ContextVar[_Answering] = ContextVar("answering")


class FullChat:
    """vLLM's chat completions, answered for one version and named as the client asked."""

    def __init__(self, serving: _Serving, renderer: OnlineRenderer, base: str) -> None:
        self._serving = serving
        self._base = base
        self.renderer = renderer

    @classmethod
    async def build(cls, engine: AsyncLLM, arguments: Namespace, base: str) -> FullChat:
        """vLLM's OpenAI layer around `engine`, as its own server would build it from `arguments`."""
        template = load_chat_template(arguments.chat_template)
        shared: dict[str, Any] = {
            "chat_template": template,
            "chat_template_content_format": arguments.chat_template_content_format,
            "trust_request_chat_template": True,  # an adapter's own: what a client sends is refused at the gateway (`schemas.py`)
            "exclude_tools_when_tool_choice_none": arguments.exclude_tools_when_tool_choice_none,
            "enable_auto_tools": arguments.enable_auto_tool_choice,
            "tool_parser": arguments.tool_call_parser,
            "reasoning_parser": arguments.structured_outputs_config.reasoning_parser,
            "default_chat_template_kwargs": arguments.default_chat_template_kwargs,
            "request_logger": None,  # prompts are never logged
        }
        renderer = OnlineRenderer(engine.model_config, engine.renderer, **shared)
        renderer.warmup()
        models = _Models(engine, [BaseModelPath(name=base, model_path=base)])
        serving = _Serving(
            engine, models, "assistant", online_renderer=renderer, return_tokens_as_token_ids=arguments.return_tokens_as_token_ids, **shared
        )
        serving.default_sampling_params["max_tokens"] = DEFAULT_MAX_TOKENS
        return cls(serving, renderer, base)

    @property
    def parses(self) -> bool:
        """Whether a tool parser is configured, which then sees every delta."""
        return self._serving.parser_cls is not None

    @property
    def default_sampling_params(self) -> dict[str, Any]:
        defaults: dict[str, Any] = self._serving.default_sampling_params
        return defaults

    async def chat(self, call: ChatCall, request: ChatCompletionRequest, lora: LoRARequest | None, emit: Callable[[bytes], None]) -> None:
        """Answer `call`, giving `emit` each event of a stream, or the whole JSON answer. Raises Lorikeet's and vLLM's errors."""
        _answering.set(_Answering(call.model, call.adapter.exact_name if call.adapter else self._base, lora))
        request.model = self._base
        request.request_id = call.request_id
        try:
            await self._answer(request, emit)
        except Exception as error:
            fault = schema_fault(request)
            if fault is None:
                raise
            raise fault from error

    async def _answer(self, request: ChatCompletionRequest, emit: Callable[[bytes], None]) -> None:
        answer = await self._serving.create_chat_completion(request)
        if isinstance(answer, ErrorResponse):
            raise errors.from_response(answer)
        if isinstance(answer, ChatCompletionResponse):
            emit(answer.model_dump_json().encode())
            return
        await _emit_events(answer, emit)


async def _emit_events(events: AsyncIterator[str], emit: Callable[[bytes], None]) -> None:
    async for event in events:
        error = errors.from_event(event)
        if error is not None:
            raise error
        emit(event.encode())


class _Models(OpenAIServingModels):
    def model_name(self, lora_request: LoRARequest | None = None) -> str:
        return _answering.get().model


class _Serving(OpenAIServingChat):
    async def _check_model(self, request: Any) -> None:
        return None  # the gateway resolved the name, and the replica has the adapter loaded

    def _maybe_get_adapters(self, request: Any, supports_default_mm_loras: bool = False) -> LoRARequest | None:
        return _answering.get().lora

    @property
    def system_fingerprint(self) -> str:
        return _answering.get().version

    @system_fingerprint.setter
    def system_fingerprint(self, value: str | None) -> None:
        """vLLM sets its own once, at the start; ours names the version of each answer."""
