"""The short path: a plain text chat, streamed or not, from vLLM's engine to encoded bytes without vLLM's OpenAI layer.

Prompt and sampling parameters are made by vLLM's own code, as on the full path. What is saved is all that the full path does per token
and per answer: instead of a task per request that wakes for every token and builds pydantic objects, a tap sits where the engine's output
loop puts each output, encodes it there and then (`sse.py`, `whole.py`), and hands it on. A request that asks for more takes the full path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.inputs.engine import EngineInput
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput, PoolingRequestOutput, RequestOutput
from vllm.renderers.inputs.preprocess import extract_prompt_components, extract_prompt_len
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector

from adapters_store.errors import InternalError
from deployments.engine import errors
from deployments.engine.sse import DONE, ChunkEncoder
from deployments.engine.whole import encode_whole
from deployments.messages import ChatCall

Emit = Callable[[bytes], None]


def is_plain(request: ChatCompletionRequest) -> bool:
    """Whether a request asks for nothing but the text of one choice, streamed or whole."""
    return bool(
        (request.n or 1) == 1
        and not request.logprobs
        and not request.tools
        and request.response_format is None
        and request.structured_outputs is None
        and not request.use_beam_search
        and not request.echo
        and request.prompt_logprobs is None
        and not request.return_token_ids
        and not request.return_prompt_text
        and request.add_generation_prompt
        and request.include_reasoning
        and not (request.stream_options and request.stream_options.continuous_usage_stats)
        and all(_is_text(message.get("content")) for message in request.messages)
    )


def _is_text(content: object) -> bool:
    """A message's content as a string, or as parts that are all text."""
    if isinstance(content, list):
        return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
    return isinstance(content, str)


class PlainChat:
    """Answers plain text chats straight out of the engine's output loop."""

    def __init__(
        self, engine: AsyncLLM, renderer: OnlineRenderer, default_sampling_params: dict[str, Any], base: str, *, parses: bool
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._defaults = default_sampling_params
        self._base = base
        self._parses = parses  # vLLM's own path has a parser look at each delta

    async def chat(self, call: ChatCall, request: ChatCompletionRequest, lora: LoRARequest | None, emit: Emit) -> None:
        """Answer `call`, giving `emit` its events, or its one whole body.

        Raises Lorikeet's and vLLM's errors; cancelling it aborts the engine's request.
        """
        rendered = await self._renderer.render_chat(request)
        if isinstance(rendered, ErrorResponse):
            raise errors.from_response(rendered)
        prompt = rendered[1][0]
        params = self._sampling_params(request, prompt)
        tap = await self._submit(call.request_id, prompt, params, lora, lambda rid: self._tap(rid, call, request, emit))
        try:
            await tap.done
        except asyncio.CancelledError:
            await self._engine.abort(tap.request_id, internal=True)
            raise

    def _tap(self, request_id: str, call: ChatCall, request: ChatCompletionRequest, emit: Emit) -> _Tap:
        version = call.adapter.exact_name if call.adapter else self._base
        named = (f"chatcmpl-{call.request_id}", call.model, int(time.time()), version)
        if not request.stream:
            return _WholeTap(request_id, named, emit)
        include_usage = bool(request.stream_options and request.stream_options.include_usage)
        return _StreamTap(request_id, ChunkEncoder(*named), emit, include_usage, self._parses)

    def _sampling_params(self, request: ChatCompletionRequest, prompt: EngineInput) -> SamplingParams:
        config = self._engine.model_config
        asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        prompt_tokens = extract_prompt_len(config, prompt)
        max_tokens = get_max_tokens(
            config.max_model_len, asked, prompt_tokens, self._defaults, truncate_prompt_tokens=request.truncate_prompt_tokens
        )
        return request.to_sampling_params(max_tokens, self._defaults)

    async def _submit(
        self, request_id: str, prompt: EngineInput, params: SamplingParams, lora: LoRARequest | None, make_tap: Callable[[str], _Tap]
    ) -> _Tap:
        """`AsyncLLM.add_request` for one choice, with a tap in the place of its collector."""
        engine = self._engine
        if engine.errored:
            raise engine.dead_error
        tasks = await engine.get_supported_tasks()
        request = engine.input_processor.process_inputs(f"chatcmpl-{request_id}", prompt, params, supported_tasks=tasks, lora_request=lora)
        text, _, _ = extract_prompt_components(engine.model_config, prompt)
        engine.input_processor.assign_request_id(request)
        engine._run_output_handler()  # type: ignore[no-untyped-call]
        tap = make_tap(request.request_id)
        try:
            await engine._add_request(request, text, None, 0, tap)
        except asyncio.CancelledError:  # the engine may have it already
            await engine.abort(request.request_id, internal=True)
            raise
        return tap


class _Tap(RequestOutputCollector):
    """Stands where vLLM collects a request's outputs; encodes each at once instead of waking a task for it."""

    def __init__(self, request_id: str, kind: RequestOutputKind) -> None:
        super().__init__(kind, request_id)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, output: RequestOutput | PoolingRequestOutput[Any] | Exception) -> None:
        """Called by the engine's output loop, which an exception would end for every request: none leaves here."""
        if self.done.done():
            return
        try:
            if isinstance(output, Exception):
                raise output
            assert isinstance(output, RequestOutput)
            if output.outputs[0].finish_reason == "error":
                raise InternalError("the model failed to answer this request")
            self._encode(output, output.outputs[0])
            if output.finished:
                self.done.set_result(None)
        except Exception as error:
            self.done.set_exception(error)

    def _encode(self, output: RequestOutput, choice: CompletionOutput) -> None:
        raise NotImplementedError


class _StreamTap(_Tap):
    """Each output becomes the next events of a stream."""

    def __init__(self, request_id: str, encoder: ChunkEncoder, emit: Emit, include_usage: bool, parses: bool) -> None:
        super().__init__(request_id, RequestOutputKind.DELTA)
        self._encoder = encoder
        self._emit = emit
        self._include_usage = include_usage
        self._parses = parses
        self._completion_tokens = 0
        self._begun = False

    def _encode(self, output: RequestOutput, choice: CompletionOutput) -> None:
        events = [] if self._begun else [self._encoder.role()]
        self._begun = True
        text, finish_reason = choice.text, choice.finish_reason
        if text or choice.token_ids or self._completion_tokens:  # nothing of these yet: a part of a chunked prefill
            self._completion_tokens += len(choice.token_ids)
            if finish_reason is None:
                events.append(self._encoder.delta(text))
            else:
                last = None if self._parses and not text else text  # of an empty delta, vLLM's parsers leave nothing
                events.append(self._encoder.last(last, finish_reason, choice.stop_reason, fingerprint=not self._include_usage))
        if output.finished:
            if self._include_usage:
                events.append(self._encoder.usage(len(output.prompt_token_ids or ()), self._completion_tokens))
            events.append(DONE)
        if events:
            self._emit(b"".join(events) if len(events) != 1 else events[0])


class _WholeTap(_Tap):
    """The one output of a request that is not streamed becomes its body. `named` is the answer's id, model, time and fingerprint."""

    def __init__(self, request_id: str, named: tuple[str, str, int, str], emit: Emit) -> None:
        super().__init__(request_id, RequestOutputKind.FINAL_ONLY)
        self._named = named
        self._emit = emit

    def _encode(self, output: RequestOutput, choice: CompletionOutput) -> None:
        if not output.finished:
            return
        tokens = len(output.prompt_token_ids or ()), len(choice.token_ids)
        self._emit(encode_whole(*self._named, choice.text, choice.finish_reason or "stop", choice.stop_reason, *tokens))
