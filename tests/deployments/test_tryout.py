"""A version is tried as its clients would ask it: what changes nothing, answers with NaN or fails its golden prompts has a reason."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest

from adapters_store.adapter import Adapter, AdapterFile, version_of
from adapters_store.errors import InternalError, InvalidRequest, StoreUnavailable, Unavailable
from adapters_store.own_settings import Golden, OwnSettings
from deployments.api import tryout
from tests.deployments.tryouts import BASE_ROWS, Engine

FILES = (AdapterFile("adapter_model.safetensors", 8, "0" * 64),)
ADAPTER = Adapter("acme", "support", version_of(FILES), "tiny", 8, FILES, 0.0, "key")


async def faults_of(engine: Engine, *golden: Golden, own: OwnSettings | None = None) -> list[str]:
    async def ask(who: Adapter | None, body: dict[str, Any]) -> dict[str, Any]:
        answer = await engine.open("trial", "tiny", "name", who, json.dumps(body).encode(), False)
        found: dict[str, Any] = json.loads(await answer.whole())
        return found

    return await tryout.faults(ask, ADAPTER, own or OwnSettings(golden=golden))


async def test_an_adapter_that_answers_otherwise_than_its_base_is_good() -> None:
    engine = Engine()
    assert await faults_of(engine) == []
    assert all(body["temperature"] == 0.0 for body in engine.asked)


async def test_the_same_words_with_other_probabilities_are_an_effect() -> None:
    assert await faults_of(Engine(adapted=tuple((token, logprob - 0.01) for token, logprob in BASE_ROWS))) == []


async def test_an_adapter_that_answers_exactly_like_its_base_has_no_effect() -> None:
    (reason,) = await faults_of(Engine(adapted=BASE_ROWS))
    assert "exactly like its base" in reason


async def test_what_the_base_itself_varies_by_is_no_effect() -> None:
    adapted = tuple((token, logprob - 0.01) for token, logprob in BASE_ROWS)
    (reason,) = await faults_of(Engine(adapted=adapted, noise=0.02))
    assert "exactly like its base" in reason


async def test_a_base_that_varies_in_its_words_proves_nothing() -> None:
    """Then the check says nothing against the adapter."""

    class Unsteady(Engine):
        async def open(self, request_id: str, base: str, model: str, adapter: Adapter | None, body: bytes, stream: bool) -> Any:
            if adapter is None:
                self.base_asked += 1
                return await Engine(adapted=((f"word{self.base_asked}", -1.0),)).open(request_id, base, model, ADAPTER, body, stream)
            return await super().open(request_id, base, model, adapter, body, stream)

    assert await faults_of(Unsteady(adapted=BASE_ROWS)) == []


class Templated(Engine):
    """An engine whose answers depend on the template of the prompt alone."""

    own = OwnSettings(template="{{ messages }}", defaults={"repetition_penalty": 1.3})

    async def open(self, request_id: str, base: str, model: str, adapter: Adapter | None, body: bytes, stream: bool) -> Any:
        asked = json.loads(body) if adapter is None else self.own.applied(json.loads(body))
        templated = "chat_template" in asked and asked["repetition_penalty"] == 1.3
        engine = Engine(adapted=(("templated", -0.5),) if templated else BASE_ROWS)
        return await engine.open(request_id, base, model, ADAPTER, body, stream)


async def test_another_template_alone_is_no_effect_of_the_weights() -> None:
    (reason,) = await faults_of(Templated(), own=Templated.own)
    assert "exactly like its base" in reason


async def test_a_template_that_fails_with_any_model_is_the_adapters_fault() -> None:
    error = InvalidRequest("the template failed")
    (reason,) = await faults_of(Engine(error=error, base_error=error))
    assert "the template failed" in reason


async def test_without_effect_and_golden_prompts_that_fail_are_both_told() -> None:
    no_effect, golden = await faults_of(Engine(adapted=BASE_ROWS), Golden(prompt="One?", contains="yes"))
    assert "exactly like its base" in no_effect and "golden prompt 1" in golden


async def test_nan_is_a_reason() -> None:
    (reason,) = await faults_of(Engine(adapted=(("!", math.nan),)))
    assert "NaN" in reason


@pytest.mark.parametrize("error", [InternalError("could not be loaded"), InvalidRequest("the template failed")])
async def test_what_the_engine_fails_at_is_a_reason(error: Exception) -> None:
    (reason,) = await faults_of(Engine(error=error))
    assert str(error) in reason


@pytest.mark.parametrize("error", [Unavailable("later"), StoreUnavailable("away")])
async def test_what_may_pass_is_no_reason(error: Unavailable) -> None:
    with pytest.raises(Unavailable):
        await faults_of(Engine(error=error))


async def test_a_base_that_fails_says_nothing_of_the_adapter() -> None:
    with pytest.raises(Unavailable, match="base model did not answer"):
        await faults_of(Engine(base_error=InternalError("broken")))


async def test_golden_prompts_that_hold_are_asked_greedily_within_their_tokens() -> None:
    engine = Engine(says="Arrr, matey!")
    golden = [Golden(prompt="Who are you?", contains="matey"), Golden(prompt="Say it.", matches=r"^Arr+", max_tokens=7)]
    assert await faults_of(engine, *golden) == []
    asked = {body["messages"][0]["content"]: body for body in engine.asked}
    assert asked["Say it."]["max_tokens"] == 7
    assert asked["Who are you?"]["temperature"] == 0.0


async def test_every_golden_prompt_that_fails_is_told() -> None:
    golden = [Golden(prompt="One?", contains="yes"), Golden(prompt="Two?", contains="no"), Golden(prompt="Three?", matches="^never$")]
    reasons = await faults_of(Engine(says="no."), *golden)
    assert len(reasons) == 2
    assert "golden prompt 1" in reasons[0] and '"One?"' in reasons[0] and '"yes"' in reasons[0] and '"no."' in reasons[0]
    assert "golden prompt 3" in reasons[1] and "does not match" in reasons[1]


async def test_a_pattern_that_would_run_for_years_fails_in_a_second() -> None:
    async with asyncio.timeout(10):
        (reason,) = await faults_of(Engine(says="a" * 40 + "!"), Golden(prompt="?", matches=r"^(a|aa)+$"))
    assert "does not match" in reason
