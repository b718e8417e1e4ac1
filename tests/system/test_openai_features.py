"""The OpenAI SDK, at both base URLs: what is beyond the table. Tools, structured answers, logprobs, and the sampling fields vLLM adds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.system.sdk import PREFIXES, ask, ask_streamed, openai_client, text_of
from tests.system.stack import TINY, Stack

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ASK_WEATHER = "What is the weather in Paris?"
THE = 260  # SmolLM2's token " the"


@pytest.fixture(scope="module", params=PREFIXES)
def client(stack: Stack, request: pytest.FixtureRequest) -> Iterator[OpenAI]:
    with openai_client(stack, request.param) as client:
        yield client


@pytest.mark.parametrize("choice", [{"type": "function", "function": {"name": "weather"}}, "required"], ids=["named", "required"])
def test_a_forced_tool_is_called_with_arguments_of_its_schema(client: OpenAI, choice: Any) -> None:
    answer = ask(client, ASK_WEATHER, tools=[WEATHER], tool_choice=choice, temperature=0, max_tokens=128)
    calls = answer.choices[0].message.tool_calls
    assert calls and calls[0].type == "function" and calls[0].id
    assert calls[0].function.name == "weather"
    assert json.loads(calls[0].function.arguments) == {"city": "Paris"}
    assert answer.choices[0].finish_reason == ("tool_calls" if choice == "required" else "stop")  # as OpenAI has it


def test_a_tool_call_is_streamed(client: OpenAI) -> None:
    chunks = ask_streamed(client, ASK_WEATHER, tools=[WEATHER], tool_choice="required", temperature=0, max_tokens=128)
    parts = [call.function for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or [] if call.function]
    assert "".join(part.name or "" for part in parts) == "weather"
    assert json.loads("".join(part.arguments or "" for part in parts)) == {"city": "Paris"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_model_that_may_call_a_tool_may_also_just_answer(client: OpenAI) -> None:
    plain = ask(client, temperature=0, max_tokens=16)
    for choice in ("auto", "none"):
        answer = ask(client, tools=[WEATHER], tool_choice=choice, temperature=0, max_tokens=16)
        assert not answer.choices[0].message.tool_calls
        assert text_of(answer) == text_of(plain)
        assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_json_schema_is_kept(client: OpenAI, streamed: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"word": {"enum": ["ja", "nein"]}, "number": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["word", "number"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    answer = (ask_streamed if streamed else ask)(client, response_format=wanted, temperature=0, max_tokens=64)
    found = json.loads(text_of(answer))
    assert found.keys() == {"word", "number"}
    assert found["word"] in ("ja", "nein")
    assert found["number"] in range(10)


def test_a_json_object_is_json(client: OpenAI) -> None:
    question = "Answer with a JSON object with the one key capital: what is the capital of France?"
    answer = ask(client, question, response_format={"type": "json_object"}, temperature=0, max_tokens=64)
    assert isinstance(json.loads(text_of(answer)), dict)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_logprobs_come_with_each_token(client: OpenAI, streamed: bool) -> None:
    answer: Any = (ask_streamed if streamed else ask)(client, temperature=0, max_tokens=16, logprobs=True, top_logprobs=3)
    choices = [choice for chunk in answer for choice in chunk.choices] if streamed else answer.choices
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or []]
    words = [token for token in tokens if not token.token.startswith("<|")]  # the end token has a probability as well
    assert "".join(token.token for token in words) == text_of(answer) != ""
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token, "the greedy token is the likeliest"
        assert [top.logprob for top in token.top_logprobs] == sorted((top.logprob for top in token.top_logprobs), reverse=True)


def test_logprobs_without_alternatives(client: OpenAI) -> None:
    content = ask(client, model=TINY, max_tokens=3, temperature=0, logprobs=True).choices[0].logprobs.content
    assert len(content) == 3
    assert ask(client, model=TINY, max_tokens=3, temperature=0).choices[0].logprobs is None


def test_logit_bias_forces_and_forbids_a_token(client: OpenAI) -> None:
    assert text_of(ask(client, logit_bias={str(THE): 100}, temperature=0, max_tokens=3)) == " the the the"
    first = ask(client, model=TINY, temperature=0, max_tokens=1, extra_body={"return_token_ids": True}).choices[0]
    (token,) = first.model_extra["token_ids"]
    assert text_of(ask(client, model=TINY, logit_bias={str(token): -100}, temperature=0, max_tokens=1)) != first.message.content


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("stop", ["Paris", ["Berlin", "Paris"]], ids=["one", "several"])
def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: OpenAI, stop: Any, streamed: bool) -> None:
    answer = (ask_streamed if streamed else ask)(client, stop=stop, temperature=0, max_tokens=16)
    assert text_of(answer).rstrip() == "The capital of France is"
    last = answer[-1] if isinstance(answer, list) else answer
    assert last.choices[0].finish_reason == "stop"


def test_the_same_seed_gives_the_same_answer(client: OpenAI) -> None:
    def seeded(seed: int) -> str:
        return text_of(ask(client, model=TINY, seed=seed, temperature=1, max_tokens=8))

    assert seeded(7) == seeded(7)
    assert len({seeded(seed) for seed in (7, 8, 9)}) == 3


def test_the_user_field_is_taken(client: OpenAI) -> None:
    assert text_of(ask(client, model=TINY, user="u-1", temperature=0, max_tokens=2))


@pytest.mark.parametrize("field", [{"top_k": 1}, {"min_p": 1.0}], ids=["top_k", "min_p"])
def test_vllms_own_samplers_leave_the_likeliest_token(client: OpenAI, field: dict[str, Any]) -> None:
    greedy = text_of(ask(client, model=TINY, temperature=0, max_tokens=8))
    assert {text_of(ask(client, model=TINY, temperature=1, max_tokens=8, extra_body=field)) for _ in range(2)} == {greedy}


def test_repetition_penalty_stops_a_repetition(client: OpenAI) -> None:
    question = "Repeat the word yes many times."
    assert text_of(ask(client, question, temperature=0, max_tokens=16)).count("yes") >= 5
    assert text_of(ask(client, question, temperature=0, max_tokens=16, extra_body={"repetition_penalty": 2.0})).count("yes") <= 2


def test_a_null_field_means_its_default(client: OpenAI) -> None:
    nulls = dict.fromkeys(("top_p", "n", "stop", "seed", "tools", "response_format", "stream", "frequency_penalty"))
    plain = text_of(ask(client, model=TINY, temperature=0, max_tokens=4))
    assert text_of(ask(client, model=TINY, temperature=0, max_tokens=4, extra_body=nulls)) == plain
