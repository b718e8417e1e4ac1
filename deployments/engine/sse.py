"""Chunks of a streamed chat completion, encoded by hand: the short path's half of what vLLM's pydantic objects do.

Field for field what vLLM 0.29 streams for a plain text chat (`tests/system/test_short_path.py` holds the two equal). One request has
one `ChunkEncoder`, which formats what never changes once and then only the text of each delta.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring  # the C encoder that json.dumps uses

DONE = b"data: [DONE]\n\n"


class ChunkEncoder:
    """Encodes the chunks of one answer of one choice."""

    def __init__(self, completion_id: str, model: str, created: int, fingerprint: str) -> None:
        self._envelope = f'{{"id":"{completion_id}","object":"chat.completion.chunk","created":{created},"model":{quote(model)},'
        self._fingerprint = quote(fingerprint)
        self._before_delta = f'data: {self._envelope}"choices":[{{"index":0,"delta":{{'
        self._delta = f'{self._before_delta}"content":'

    def role(self) -> bytes:
        """The first chunk: who speaks."""
        return (
            f'data: {self._envelope}"choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,'
            f'"finish_reason":null}}],"prompt_token_ids":null,"prompt_text":null}}\n\n'
        ).encode()

    def delta(self, text: str) -> bytes:
        return f'{self._delta}{quote(text)}}},"logprobs":null,"finish_reason":null,"token_ids":null}}]}}\n\n'.encode()

    def last(self, text: str | None, finish_reason: str, stop_reason: int | str | None, *, fingerprint: bool = True) -> bytes:
        """The delta that ends the choice; None is one without content. Carries the fingerprint unless a usage chunk follows that does."""
        content = "" if text is None else f'"content":{quote(text)}'
        tail = f',"system_fingerprint":{self._fingerprint}' if fingerprint else ""
        return (
            f'{self._before_delta}{content}}},"logprobs":null,"finish_reason":{quote(finish_reason)},'
            f'"stop_reason":{json.dumps(stop_reason, ensure_ascii=False)},"token_ids":null}}]{tail}}}\n\n'
        ).encode()

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The chunk that `stream_options.include_usage` asks for."""
        total = prompt_tokens + completion_tokens
        usage = f'"usage":{{"prompt_tokens":{prompt_tokens},"total_tokens":{total},"completion_tokens":{completion_tokens}}}'
        return f'data: {self._envelope}"choices":[],{usage},"system_fingerprint":{self._fingerprint}}}\n\n'.encode()


def quote(text: str) -> str:
    """`text` as a JSON string, non-ASCII left as it is."""
    quoted: str = encode_basestring(text)
    return quoted
