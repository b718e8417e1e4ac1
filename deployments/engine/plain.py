"""The short path: a plain text chat, streamed or not, from vLLM's engine to encoded bytes without vLLM's OpenAI layer.

Prompt and sampling parameters are made by vLLM's own code, as on the full path. What is saved is all that the full path does per token
and per answer: instead of a task per request that wakes for every token and builds pydantic objects, a tap sits in the engine's output
loop (`tap.py`), encodes what comes (`sse.py`, `whole.py`), and hands it on. What asks for more takes the full path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.inputs.engine import EngineInput
from vllm.lora.request import LoRARequest
from vllm.renderers.inputs.preprocess import extract_prompt_components, extract_prompt_len
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from deployments.engine.rendering import TextRenderer
from deployments.engine.sse import ChunkEncoder
from deployments.engine.tap import Outlet, StreamTap, Tap, WholeTap
from deployments.messages import ChatCall


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
        self._renderer = TextRenderer(renderer)
        self._defaults = default_sampling_params
        self._base = base
        self._parses = parses  # vLLM's own path has a parser look at each delta

    async def chat(self, call: ChatCall, request: ChatCompletionRequest, lora: LoRARequest | None, outlet: Outlet) -> None:
        """Answer `call`, giving `outlet` its events, or its one whole body.

        Raises Lorikeet's and vLLM's errors; cancelling it aborts the engine's request.
        """
        prompt = await self._renderer.render(request, len(call.body))
        params = self._sampling_params(request, prompt)
        tap = await self._submit(call.request_id, prompt, params, lora, lambda rid: self._tap(rid, call, request, outlet))
        try:
            await tap.done
        except EngineDeadError:
            raise
        except BaseException:  # cancelled, or it could not be told: its adapter is let go of, so it must not run on
            await self._engine.abort(tap.request_id, internal=True)
            raise

    def _tap(self, request_id: str, call: ChatCall, request: ChatCompletionRequest, outlet: Outlet) -> Tap:
        version = call.adapter.exact_name if call.adapter else self._base
        named = (f"chatcmpl-{call.request_id}", call.model, int(time.time()), version)
        if not request.stream:
            return WholeTap(request_id, named, outlet)
        include_usage = bool(request.stream_options and request.stream_options.include_usage)
        return StreamTap(request_id, ChunkEncoder(*named), outlet, include_usage, self._parses)

    def _sampling_params(self, request: ChatCompletionRequest, prompt: EngineInput) -> SamplingParams:
        config = self._engine.model_config
        asked = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
        prompt_tokens = extract_prompt_len(config, prompt)
        max_tokens = get_max_tokens(
            config.max_model_len, asked, prompt_tokens, self._defaults, truncate_prompt_tokens=request.truncate_prompt_tokens
        )
        return request.to_sampling_params(max_tokens, self._defaults)

    async def _submit(
        self, request_id: str, prompt: EngineInput, params: SamplingParams, lora: LoRARequest | None, make_tap: Callable[[str], Tap]
    ) -> Tap:
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
            engine.check_admission(request_id=request.request_id)
            engine.output_processor.add_request(request, text, None, 0, tap)
            tap.stand_in(engine.output_processor.request_states[request.request_id])
            await engine.engine_core.add_request_async(request)
        except asyncio.CancelledError:  # the engine may have it already
            await engine.abort(request.request_id, internal=True)
            raise
        return tap
