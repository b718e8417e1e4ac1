"""The official OpenAI Python SDK, pointed at a running stack: shared by the tests that speak through it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.system.stack import BASE, Stack

PREFIXES = ("/api/v1", "/v1")  # what an OpenAI client's base_url may end in here
TIMEOUT_SECONDS = 180.0
PARIS = "What is the capital of France?"  # the embedded model answers "The capital of France is Paris." and stops


@contextlib.contextmanager
def openai_client(stack: Stack, prefix: str) -> Iterator[OpenAI]:
    # No retries: a first answer that is wrong is a failure.
    with OpenAI(base_url=f"{stack.url}{prefix}", api_key=stack.key, timeout=TIMEOUT_SECONDS, max_retries=0) as client:
        yield client


def ask(client: OpenAI, content: str = PARIS, *, model: str = BASE, **fields: Any) -> ChatCompletion:
    """One unstreamed answer to one user message."""
    answer: ChatCompletion = client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], **fields)
    return answer


def ask_streamed(client: OpenAI, content: str = PARIS, *, model: str = BASE, **fields: Any) -> list[ChatCompletionChunk]:
    """All chunks of a streamed answer to one user message."""
    messages = [{"role": "user", "content": content}]
    with client.chat.completions.create(model=model, messages=messages, stream=True, **fields) as stream:
        return list(stream)


def text_of(answer: ChatCompletion | list[ChatCompletionChunk]) -> str:
    """The text of the first choice."""
    if isinstance(answer, list):
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
    return answer.choices[0].message.content or ""
