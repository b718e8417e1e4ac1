"""Where the short path takes an answer out of vLLM's output loop, encoded there and then, or when its gateway has taken what went before.

vLLM makes two objects of each token that it has turned into text, and puts them where a task of the request's wakes for them. A tap
stands in both places: it is asked for the objects and takes only the text, and it is the collector, left with errors to collect.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import FinishReason
from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState

from adapters_store.errors import InternalError
from deployments.engine.sse import DONE, ChunkEncoder
from deployments.engine.whole import encode_whole


class Outlet(Protocol):
    """Where the parts of one answer go."""

    def emit(self, part: bytes) -> None:
        """Hand `part` on now."""

    def emit_later(self, make: Callable[[], bytes]) -> None:
        """Hand on what `make` gives, once, as soon as the last that was handed on so has been taken; nothing where that is empty."""


_FAILED = "the model failed to answer this request"


class Tap(RequestOutputCollector):
    """Encodes one request's outputs. `done` is set after the last, or to the error that ended them.

    It holds nothing that leads back to the request's state, so that both go with the request and not with Python's next garbage collection.
    """

    def __init__(self, request_id: str, kind: RequestOutputKind, outlet: Outlet) -> None:
        super().__init__(kind, request_id)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outlet = outlet

    def stand_in(self, state: RequestState) -> None:
        """Be asked for the outputs of `state`, which has had none yet."""
        assert state.detokenizer is not None
        self._detokenizer = state.detokenizer
        self._prompt_tokens = len(state.prompt_token_ids or ())
        self._interval = state.stream_interval
        state.make_request_output = self._take  # type: ignore[method-assign]

    def put(self, output: RequestOutput | PoolingRequestOutput[Any] | Exception) -> None:
        """What ends every request at once: the engine has died."""
        self._fail(output if isinstance(output, Exception) else InternalError(_FAILED))

    def _take(
        self,
        new_token_ids: list[int],  # their text is in the detokenizer
        pooling_output: object,
        finish_reason: FinishReason | None,
        stop_reason: int | str | None,
        kv_transfer_params: object = None,
        ec_transfer_params: object = None,
    ) -> None:
        """In the place of `RequestState.make_request_output`; makes nothing for the collector.

        Called by the engine's output loop, which an exception would end for every request: none leaves here.
        """
        if self.done.done():
            return
        try:
            if finish_reason == FinishReason.ERROR:
                raise InternalError(_FAILED)
            self._encode(finish_reason, stop_reason)
            if finish_reason is not None:
                self.done.set_result(None)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self.done.done():
            return
        with contextlib.suppress(Exception):  # what went wrong first is what is told
            self._tell_rest()
        self.done.set_exception(error)

    def _encode(self, finish_reason: FinishReason | None, stop_reason: int | str | None) -> None:
        raise NotImplementedError

    def _tell_rest(self) -> None:
        """Before an error: tell what has come and was not told yet."""


class StreamTap(Tap):
    """Outputs become the events of a stream: each its own, or several one where the gateway has not yet taken those before."""

    def __init__(self, request_id: str, encoder: ChunkEncoder, outlet: Outlet, include_usage: bool, parses: bool) -> None:
        super().__init__(request_id, RequestOutputKind.DELTA, outlet)
        self._encoder = encoder
        self._include_usage = include_usage
        self._parses = parses
        self._begun = False
        self._owes = False  # whether `_rest` will be asked for
        self._sent_tokens = 0

    def _encode(self, finish_reason: FinishReason | None, stop_reason: int | str | None) -> None:
        tokens = self._detokenizer.num_output_tokens()
        if self._interval > 1 and finish_reason is None and self._sent_tokens and tokens - self._sent_tokens < self._interval:
            return
        self._sent_tokens = tokens
        if self._begun and finish_reason is None:
            if not self._owes:
                self._owes = True
                self._outlet.emit_later(self._rest)
            return
        text = self._detokenizer.get_next_output_text(finish_reason is not None, True)
        events = [] if self._begun else [self._encoder.role()]
        self._begun = True
        if text or tokens:  # nothing of these yet: a part of a chunked prefill
            events.append(self._encoder.delta(text) if finish_reason is None else self._last(text, finish_reason, stop_reason))
        if finish_reason is not None:
            if self._include_usage:
                events.append(self._encoder.usage(self._prompt_tokens, tokens))
            events.append(DONE)
        self._outlet.emit(b"".join(events))

    def _rest(self) -> bytes:
        """The text that has come and was not told yet, as one event."""
        if self.done.done():  # the end, or what came before an error, has told it
            return b""
        self._owes = False
        try:
            return self._encoder.delta(self._detokenizer.get_next_output_text(False, True))
        except Exception as error:  # its own: others wait for the same flush
            self._fail(error)
            return b""

    def _tell_rest(self) -> None:
        if self._owes:
            self._outlet.emit(self._rest())

    def _last(self, text: str, finish_reason: FinishReason, stop_reason: int | str | None) -> bytes:
        delta = None if self._parses and not text else text  # of an empty delta, vLLM's parsers leave nothing
        return self._encoder.last(delta, str(finish_reason), stop_reason, fingerprint=not self._include_usage)


class WholeTap(Tap):
    """The one output of a request that is not streamed becomes its body. `named` is the answer's id, model, time and fingerprint."""

    def __init__(self, request_id: str, named: tuple[str, str, int, str], outlet: Outlet) -> None:
        super().__init__(request_id, RequestOutputKind.FINAL_ONLY, outlet)
        self._named = named

    def _encode(self, finish_reason: FinishReason | None, stop_reason: int | str | None) -> None:
        if finish_reason is None:
            return
        text = self._detokenizer.get_next_output_text(True, False)
        tokens = self._prompt_tokens, self._detokenizer.num_output_tokens()
        self._outlet.emit(encode_whole(*self._named, text, str(finish_reason), stop_reason, *tokens))
