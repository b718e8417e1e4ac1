"""A dispatch that answers trials as an engine would: the base in one way, each adapter as the test says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from adapters_store.adapter import Adapter
from tests.deployments.gateway import FakeAnswer

Row = tuple[str, float]  # a token and its log probability
BASE_ROWS: tuple[Row, ...] = (("Paris", -0.5), (".", -0.1))


def whole(rows: tuple[Row, ...], text: str | None = None) -> bytes:
    """A chat completion with the log probabilities of its tokens; NaN travels as null."""
    likely = [{"token": token, "logprob": _json(logprob)} for token, logprob in rows]
    content = [{**row, "top_logprobs": [row]} for row in likely]
    said = "".join(token for token, _ in rows) if text is None else text
    return json.dumps({"choices": [{"message": {"content": said}, "logprobs": {"content": content}}]}).encode()


def _json(logprob: float) -> float | None:
    return None if logprob != logprob else logprob


@dataclass
class Engine:
    """Stands for `dispatch.Dispatch`. `adapted` is how the adapter answers, `error` what it fails with; `noise` is added to every other
    answer of the base; `asked` keeps the bodies of what the adapter was asked."""

    adapted: tuple[Row, ...] = (("Arrr", -0.2), ("!", -0.3))
    says: str | None = None
    error: Exception | None = None
    base_error: Exception | None = None
    noise: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    base_asked: int = 0

    async def open(self, request_id: str, base: str, model: str, adapter: Adapter | None, body: bytes, stream: bool) -> FakeAnswer:
        assert not stream
        if adapter is None:
            self.base_asked += 1
            if self.base_error is not None:
                raise self.base_error
            shift = self.noise * (self.base_asked % 2)
            return FakeAnswer([whole(tuple((token, logprob - shift) for token, logprob in BASE_ROWS))])
        self.asked.append(json.loads(body))
        if self.error is not None:
            raise self.error
        return FakeAnswer([whole(self.adapted, self.says)])
