"""What is asked of each stack: how many requests at a time, how many in all, streamed or not."""

from __future__ import annotations

from dataclasses import dataclass, replace

OUTPUT_TOKENS = 64
PROMPT_TOKENS = 16  # before the chat template


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    at_once: int
    requests: int
    stream: bool = True


TTFT_1, STREAM_32, STREAM_128, UNARY_64, STREAM_8 = "ttft_1", "stream_32", "stream_128", "unary_64", "stream_8"

NULL_CASES = (
    Case(TTFT_1, 1, 40),
    Case(STREAM_8, 8, 96),
    Case(STREAM_32, 32, 384),
    Case(STREAM_128, 128, 1024),
    Case(UNARY_64, 64, 512, stream=False),
)
REAL_CASES = (Case(STREAM_8, 8, 24),)
SCALE_CASES = (Case(STREAM_128, 128, 1024),)


def shorter(case: Case) -> Case:
    """The same case with as few requests as still say something, for a look while developing."""
    return replace(case, requests=max(case.at_once * 3, min(case.requests, 16)))
