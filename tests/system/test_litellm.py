"""LiteLLM's `empower/` provider, which was written for the service whose API is the contract, with its api_base pointed here."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.system.sdk import PARIS, PREFIXES
from tests.system.stack import Stack

TIMEOUT_SECONDS = 180.0


@pytest.fixture(scope="module")
def litellm() -> Iterator[ModuleType]:
    """LiteLLM without its calls home: its price list comes from the package, and it reports nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

        patch.setattr(litellm, "telemetry", False)
        yield litellm


@pytest.fixture(params=PREFIXES)
def fields(stack: Stack, request: pytest.FixtureRequest) -> dict[str, Any]:
    return {
        "model": "empower/demo/pirate",
        "messages": [{"role": "user", "content": PARIS}],
        "api_base": f"{stack.url}{request.param}",
        "api_key": stack.key,
        "temperature": 0,
        "max_tokens": 12,
        "timeout": TIMEOUT_SECONDS,
        "num_retries": 0,
    }


def test_empower_completes_and_streams_the_same(litellm: ModuleType, stack: Stack, fields: dict[str, Any]) -> None:
    body = {"model": "demo/pirate", "messages": PARIS, "temperature": 0, "max_tokens": 12}
    with stack.client() as http:
        wanted = http.post("chat/completions", json=body).json()
    answer = litellm.completion(**fields)
    assert answer.choices[0].message.content == wanted["choices"][0]["message"]["content"] != ""
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == wanted["usage"]["total_tokens"]
    assert answer.system_fingerprint == wanted["system_fingerprint"]
    chunks = list(litellm.completion(**fields, stream=True))
    assert len(chunks) > 2
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content


def test_empower_tells_a_wrong_key_and_an_unknown_model_apart(litellm: ModuleType, fields: dict[str, Any]) -> None:
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**fields, "api_key": "lk-not-a-key"})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**fields, "model": "empower/nobody/nothing"})
