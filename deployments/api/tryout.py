"""Trying a version on a live replica: does it load, does it answer otherwise than the base, do its golden prompts hold.

Asked like any client's chats, over the same way, so what is found is what clients would meet. For `admission.py`.

The effect check asks base and adapter the same prompts, greedily, and compares the log probabilities of each next token as long as both
have written the same. The base is asked with the adapter's own template and parameters: what they change is not the weights' doing. And it
is asked twice: what differs between its own two answers, as its batches do, counts for nothing.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import regex

from adapters_store.adapter import Adapter
from adapters_store.errors import InternalError, InvalidRequest, Unavailable
from adapters_store.own_settings import Golden, OwnSettings

Ask = Callable[[Adapter | None, dict[str, Any]], Awaitable[dict[str, Any]]]  # None asks the base; the body in, the answer's JSON out

T = TypeVar("T")

PROMPTS = ("What is the capital of France?", "Write one sentence about the sea.")
TOKENS = 4
TOP_LOGPROBS = 5
LEAST_DIFFERENCE = 1e-6  # of a log probability; of float32's rounding, where the weights change nothing
_MATCH_SECONDS = 1.0
_SHOWN = 200
_NO_EFFECT = (
    "it answers exactly like its base model: the engine loads it and it changes nothing; check that it was trained, and on this base."
)


async def wake(ask: Ask) -> None:
    """Return when the base model answers. Raises Unavailable, Overloaded."""
    await _ask_base(ask, _greedy("Hi.", 1))


async def faults(ask: Ask, adapter: Adapter, own: OwnSettings) -> list[str]:
    """Every reason why `adapter`, which brings `own`, may not be served; none when it may.

    Raises Unavailable, Overloaded, StoreUnavailable where that could not be found out now.
    """
    probes = await asyncio.gather(*(_probe(ask, adapter, own, prompt) for prompt in PROMPTS), return_exceptions=True)
    unfit = [probe.reason for probe in probes if isinstance(probe, _Unfit)]
    if unfit:
        return list(dict.fromkeys(unfit))  # its golden prompts would say no more
    effects = [_answered(probe) for probe in probes]
    answers = await asyncio.gather(*(_golden_fault(ask, adapter, number, prompt) for number, prompt in enumerate(own.golden, 1)))
    without_effect = [] if any(effect is not False for effect in effects) else [_NO_EFFECT]
    return [*without_effect, *(fault for fault in answers if fault is not None)]


async def _probe(ask: Ask, adapter: Adapter, own: OwnSettings, prompt: str) -> bool | None:
    """Whether the adapter has an effect on this prompt; None where the base does not even agree with itself."""
    body = {**_greedy(prompt, TOKENS), "logprobs": True, "top_logprobs": TOP_LOGPROBS}
    as_base = own.applied(body)
    asking = (_ask_adapter(ask, adapter, body), _ask_base(ask, as_base), _ask_base(ask, as_base))
    # The adapter's fault comes first: its template may be one that fails with any model.
    adapted, one, other = [_answered(answer) for answer in await asyncio.gather(*asking, return_exceptions=True)]
    written = _tokens(adapted)
    if any(not math.isfinite(logprob) for _, logprob, top in written for logprob in (logprob, *top.values())):
        raise _Unfit(
            "its answers are not numbers (NaN): its weights are too large for the base's precision; train with a lower alpha or rate."
        )
    noise = _difference(_tokens(one), _tokens(other))
    if noise == math.inf:
        return None
    return _difference(_tokens(one), written) > max(LEAST_DIFFERENCE, 2 * noise)


def _answered(answer: T | BaseException) -> T:
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def _golden_fault(ask: Ask, adapter: Adapter, number: int, golden: Golden) -> str | None:
    try:
        answer = await _ask_adapter(ask, adapter, _greedy(golden.prompt, golden.max_tokens))
    except _Unfit as unfit:
        return f"golden prompt {number} ({_shown(golden.prompt)}): {unfit.reason}"
    text = answer["choices"][0]["message"]["content"] or ""
    if golden.contains is not None:
        held, wanted = golden.contains in text, f"which does not contain {_shown(golden.contains)}"
    else:
        held, wanted = await asyncio.to_thread(_matches, golden.matches or "", text), f"which does not match {_shown(golden.matches or '')}"
    return None if held else f"golden prompt {number} ({_shown(golden.prompt)}) was answered {_shown(text)}, {wanted}."


async def _ask_base(ask: Ask, body: dict[str, Any]) -> dict[str, Any]:
    try:
        return await ask(None, body)
    except (InvalidRequest, InternalError) as error:  # nothing that the adapter has done
        raise Unavailable("the base model did not answer, so the adapter could not be compared with it") from error


async def _ask_adapter(ask: Ask, adapter: Adapter, body: dict[str, Any]) -> dict[str, Any]:
    try:
        try:
            return await ask(adapter, body)
        except InternalError:  # it may have been somebody else's: a replica that died
            return await ask(adapter, body)
    except InvalidRequest as error:
        raise _Unfit(f"the engine refuses a plain chat with it: {error.message}") from error
    except InternalError as error:
        raise _Unfit(f"the engine could not answer with it: {error.message}.") from error


def _greedy(prompt: str, tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "temperature": 0.0, "max_tokens": tokens}


def _tokens(answer: dict[str, Any]) -> list[tuple[str, float, dict[str, float]]]:
    """Each token of an answer: it, its log probability, and those of the likeliest ones."""
    rows = (answer["choices"][0].get("logprobs") or {}).get("content") or []
    return [(row["token"], _number(row["logprob"]), {top["token"]: _number(top["logprob"]) for top in row["top_logprobs"]}) for row in rows]


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # JSON has no NaN


def _difference(one: list[tuple[str, float, dict[str, float]]], other: list[tuple[str, float, dict[str, float]]]) -> float:
    """The largest difference of a token's log probability while both have written the same; infinite when they part."""
    largest = 0.0
    for (token, logprob, top), (other_token, other_logprob, other_top) in zip(one, other, strict=False):
        largest = max([largest, *(abs(top[t] - other_top[t]) for t in top.keys() & other_top.keys())])
        if token != other_token:
            return math.inf
        largest = max(largest, abs(logprob - other_logprob))
    return largest if len(one) == len(other) else math.inf


def _matches(pattern: str, text: str) -> bool:
    """Blocks, for a second at most: a pattern that takes longer does not match."""
    try:
        return regex.search(pattern, text, timeout=_MATCH_SECONDS) is not None
    except TimeoutError:
        return False


def _shown(text: str) -> str:
    return json.dumps(text if len(text) <= _SHOWN else text[:_SHOWN] + "…", ensure_ascii=False)


class _Unfit(Exception):
    """The adapter failed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
