"""A tap in vLLM's output loop tells what vLLM's own collector would have been told. Through a whole engine: test_short_path.py."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import get_tokenizer
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from adapters_store.errors import InternalError
from deployments.engine.sse import DONE, ChunkEncoder
from deployments.engine.tap import StreamTap, Tap, WholeTap
from tests.parts import KeptParts

TEXT = "Parrots say 🦜 and naïve things, then they stop there."
PROMPT_TOKENS = [1, 2, 3]
ID = "chatcmpl-1"


class Kept(RequestOutputCollector):
    """vLLM's own, which keeps what it is given instead of merging it."""

    def __init__(self, kind: RequestOutputKind) -> None:
        super().__init__(kind, ID)
        self.outputs: list[RequestOutput] = []

    def put(self, output: RequestOutput | PoolingRequestOutput[Any] | Exception) -> None:
        assert isinstance(output, RequestOutput)
        self.outputs.append(output)


@dataclass
class Loop:
    """vLLM's output processor with one request, fed as the engine's process feeds it."""

    tokenizer: Any
    collector: RequestOutputCollector
    stop: str | None = None
    interval: int = 1
    kind: RequestOutputKind = RequestOutputKind.DELTA
    processor: OutputProcessor = field(init=False)

    def __post_init__(self) -> None:
        self.processor = OutputProcessor(self.tokenizer, log_stats=False, stream_interval=self.interval)
        params = SamplingParams(stop=self.stop, output_kind=self.kind)
        request = EngineCoreRequest(ID, PROMPT_TOKENS, None, params, None, 0.0, None, None, None, external_req_id="1")
        self.processor.add_request(request, None, None, 0, self.collector)
        if isinstance(self.collector, Tap):
            self.collector.stand_in(self.processor.request_states[ID])

    def say(self, tokens: list[int], at_once: int, reason: FinishReason | None, stop_reason: int | None = None) -> None:
        """`tokens`, so many in each step; the last step ends the request for `reason`, if it has not ended before."""
        for at in range(0, len(tokens), at_once):
            last = at + at_once >= len(tokens)
            end = (reason, stop_reason) if last else (None, None)
            self.processor.process_outputs([EngineCoreOutput(ID, tokens[at : at + at_once], finish_reason=end[0], stop_reason=end[1])])


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Path) -> Any:
    return get_tokenizer(str(embedded_model))


def stream_tap(parts: list[bytes], *, usage: bool = True) -> StreamTap:
    return tap_into(KeptParts(parts), usage=usage)


def tap_into(outlet: KeptParts, *, usage: bool = True) -> StreamTap:
    return StreamTap(ID, ChunkEncoder(ID, "m", 7, "v"), outlet, include_usage=usage, parses=False)


def chunks(parts: list[bytes]) -> list[dict[str, Any]]:
    """What was emitted, which ends with [DONE] and begins with the role."""
    events = b"".join(parts).split(b"\n\n")
    assert events[-2:] == [DONE.strip(), b""]
    parsed = [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]
    assert parsed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    return parsed[1:]


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("stop", [None, "then", "no such text"])
@pytest.mark.parametrize(
    "end", [(FinishReason.LENGTH, None), (FinishReason.STOP, None), (FinishReason.STOP, 17), (FinishReason.ABORT, None)]
)
async def test_a_stream_has_vllms_texts_one_by_one(tokenizer: Any, interval: int, at_once: int, stop: str | None, end: Any) -> None:
    tokens = tokenizer.encode(TEXT)
    parts: list[bytes] = []
    kept = Kept(RequestOutputKind.DELTA)
    tap = stream_tap(parts)
    for collector in (kept, tap):
        Loop(tokenizer, collector, stop, interval).say(tokens, at_once, *end)

    *deltas, usage = chunks(parts)
    choices = [chunk["choices"][0] for chunk in deltas]
    outputs = [output.outputs[0] for output in kept.outputs]
    assert [choice["delta"]["content"] for choice in choices] == [output.text for output in outputs]
    assert [choice["finish_reason"] for choice in choices] == [output.finish_reason for output in outputs]
    assert choices[-1]["stop_reason"] == outputs[-1].stop_reason
    assert usage["usage"]["completion_tokens"] == sum(len(output.token_ids) for output in outputs)
    assert usage["usage"]["prompt_tokens"] == len(PROMPT_TOKENS)
    assert tap.done.done() and tap.done.exception() is None


@pytest.mark.parametrize("stop", [None, "then"])
async def test_a_whole_answer_is_vllms(tokenizer: Any, stop: str | None) -> None:
    tokens = tokenizer.encode(TEXT)
    parts: list[bytes] = []
    kept = Kept(RequestOutputKind.FINAL_ONLY)
    tap = WholeTap(ID, (ID, "m", 7, "v"), KeptParts(parts))
    for collector in (kept, tap):
        Loop(tokenizer, collector, stop, kind=RequestOutputKind.FINAL_ONLY).say(tokens, 1, FinishReason.LENGTH)

    (output,) = kept.outputs
    (body,) = map(json.loads, parts)
    assert body["choices"][0]["message"]["content"] == output.outputs[0].text
    assert (body["choices"][0]["finish_reason"], body["choices"][0]["stop_reason"]) == (
        output.outputs[0].finish_reason,
        output.outputs[0].stop_reason,
    )
    assert body["usage"]["completion_tokens"] == len(output.outputs[0].token_ids)
    assert tap.done.done()


@pytest.mark.parametrize("every", [2, 5, 1000])
@pytest.mark.parametrize("stop", [None, "then"])
async def test_steps_that_the_gateway_has_not_taken_become_one_event_as_vllms_would(tokenizer: Any, every: int, stop: str | None) -> None:
    tokens = tokenizer.encode(TEXT)
    outlet = KeptParts([], held=True)
    tap = tap_into(outlet)
    collector = RequestOutputCollector(RequestOutputKind.DELTA, ID)
    merged: list[RequestOutput] = []
    loops = [Loop(tokenizer, collector, stop), Loop(tokenizer, tap, stop)]
    for at, token in enumerate(tokens):
        for loop in loops:
            loop.say([token], 1, FinishReason.LENGTH if at + 1 == len(tokens) else None)
        if at == 0 or at % every == 0:  # the first is told at once
            outlet.let_go()
            merged += filter(None, [collector.get_nowait()])  # type: ignore[list-item]
        if tap.done.done():
            break
    merged += filter(None, [collector.get_nowait()])  # type: ignore[list-item]
    outlet.let_go()

    *deltas, usage = chunks(outlet.parts)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in deltas] == [output.outputs[0].text for output in merged]
    assert deltas[-1]["choices"][0]["finish_reason"] == merged[-1].outputs[0].finish_reason
    assert usage["usage"]["completion_tokens"] == len([token for output in merged for token in output.outputs[0].token_ids])


async def test_what_has_come_is_told_before_an_error(tokenizer: Any) -> None:
    outlet = KeptParts(held=True)
    tap = tap_into(outlet)
    loop = Loop(tokenizer, tap)
    loop.say(tokenizer.encode(TEXT)[:9], 1, None)
    assert len(outlet.parts) == 1
    loop.processor.propagate_error(EngineDeadError())
    assert isinstance(tap.done.exception(), EngineDeadError)
    outlet.let_go()
    told = [json.loads(event.removeprefix(b"data: ")) for event in b"".join(outlet.parts).split(b"\n\n") if event]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in told) == tokenizer.decode(tokenizer.encode(TEXT)[:9])
    assert len(outlet.parts) == 2, "once"


async def test_text_that_cannot_be_told_later_ends_its_own_request_alone(tokenizer: Any) -> None:
    outlet = KeptParts([], held=True)
    tap = tap_into(outlet)
    Loop(tokenizer, tap).say(tokenizer.encode(TEXT)[:3], 1, None)
    tap._encoder = None  # type: ignore[assignment]
    outlet.let_go()  # raises nothing into the flush of all
    assert isinstance(tap.done.exception(), AttributeError)


async def test_a_request_that_vllm_aborts_ends_as_its_own_would(tokenizer: Any) -> None:
    parts: list[bytes] = []
    tap = stream_tap(parts)
    loop = Loop(tokenizer, tap)
    loop.say(tokenizer.encode(TEXT)[:3], 1, None)
    loop.processor.abort_requests([ID], internal=True)
    assert chunks(parts)[-2]["choices"][0]["finish_reason"] == "abort"
    assert tap.done.done()


async def test_an_answer_that_failed_is_an_error_and_the_loop_goes_on(tokenizer: Any) -> None:
    for fail in (
        lambda loop: loop.say([5], 1, FinishReason.ERROR),
        lambda loop: loop.processor.propagate_error(EngineDeadError()),
    ):
        tap = stream_tap([])
        loop = Loop(tokenizer, tap)
        fail(loop)
        assert isinstance(tap.done.exception(), InternalError | EngineDeadError)
        loop.say([5], 1, None)  # what comes after is nobody's


async def test_a_client_that_cannot_be_told_ends_its_own_request_alone(tokenizer: Any) -> None:
    class Away(KeptParts):
        def emit(self, part: bytes) -> None:
            raise RuntimeError("no way to the gateway")

    tap = tap_into(Away([]))
    Loop(tokenizer, tap).say([5], 1, None)  # raises nothing into the loop
    assert isinstance(tap.done.exception(), RuntimeError)


async def test_a_request_that_ended_leaves_nothing_for_the_garbage_collector(tokenizer: Any) -> None:
    gc.disable()
    try:
        tap = stream_tap([])
        loop = Loop(tokenizer, tap)
        state = weakref.ref(loop.processor.request_states[ID])
        loop.say(tokenizer.encode(TEXT), 1, FinishReason.LENGTH)
        assert state() is None
    finally:
        gc.enable()
