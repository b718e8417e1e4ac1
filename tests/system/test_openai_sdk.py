"""The official OpenAI Python SDK, at both base URLs: every field of the contract's table, the answer's shape, and who answered."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from tests.system.sdk import PARIS, PREFIXES, ask, ask_streamed, openai_client, text_of
from tests.system.stack import BASE, CONTEXT, TINY, Stack

ALIAS_OF_PIRATE = "demo/pirate:production"


@pytest.fixture(scope="module", params=PREFIXES)
def client(stack: Stack, request: pytest.FixtureRequest) -> Iterator[OpenAI]:
    with openai_client(stack, request.param) as client:
        yield client


@pytest.fixture(scope="module")
def pirate(stack: Stack) -> str:
    """The exact version that demo/pirate means."""
    with stack.client() as http:
        return f"demo/pirate@{http.get('adapters/demo/pirate').json()['aliases']['production']}"


def test_all_fields_of_the_table_work_together(client: OpenAI) -> None:
    fields = {"temperature": 0.7, "top_p": 0.9, "frequency_penalty": -2.0, "presence_penalty": 2.0, "n": 2, "max_tokens": 5}
    answer = ask(client, model=TINY, extra_body={"ignore_eos": True, "stream": False}, **fields)
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage and answer.usage.completion_tokens == 10
    chunks = ask_streamed(client, model=TINY, extra_body={"ignore_eos": True}, **fields)
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


def test_an_answer_has_the_contracts_shape(client: OpenAI) -> None:
    answer = ask(client, temperature=0, max_tokens=16)
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content) == ("assistant", "The capital of France is Paris.")
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", BASE, BASE)
    assert answer.id.startswith("chatcmpl-")
    assert answer.created > 1_600_000_000
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens == 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_n_gives_as_many_choices_each_of_its_own(client: OpenAI) -> None:
    answer = ask(client, model=TINY, n=2, max_tokens=8, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content


def test_max_tokens_left_out_is_256(client: OpenAI) -> None:
    answer = ask(client, model=TINY, extra_body={"ignore_eos": True})
    assert answer.usage and answer.usage.completion_tokens == 256
    assert answer.choices[0].finish_reason == "length"


def test_max_tokens_left_out_is_what_the_context_still_holds(client: OpenAI) -> None:
    answer = ask(client, "word " * 900, model=TINY, extra_body={"ignore_eos": True})
    assert answer.usage and 0 < answer.usage.completion_tokens < 256
    assert answer.usage.total_tokens == CONTEXT


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_no_more_tokens_come_than_were_asked_for(client: OpenAI, field: str) -> None:
    answer = ask(client, model=TINY, extra_body={"ignore_eos": True, field: 7})
    assert answer.usage and answer.usage.completion_tokens == 7
    assert answer.choices[0].finish_reason == "length"
    chunks = ask_streamed(client, model=TINY, extra_body={"ignore_eos": True, field: 7}, stream_options={"include_usage": True})
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 7


def test_temperature_0_always_answers_the_same_and_2_does_not(client: OpenAI) -> None:
    greedy = {text_of(ask(client, model=TINY, temperature=0, max_tokens=8)) for _ in range(3)}
    hot = {text_of(ask(client, model=TINY, temperature=2, max_tokens=8)) for _ in range(3)}
    assert len(greedy) == 1
    assert len(hot) > 1


def test_the_default_temperature_is_1_not_0(client: OpenAI) -> None:
    assert len({text_of(ask(client, model=TINY, max_tokens=8)) for _ in range(3)}) > 1


def test_a_small_top_p_leaves_the_likeliest_token(client: OpenAI) -> None:
    greedy = text_of(ask(client, model=TINY, temperature=0, max_tokens=8))
    assert {text_of(ask(client, model=TINY, temperature=1, top_p=1e-6, max_tokens=8)) for _ in range(2)} == {greedy}


@pytest.mark.parametrize("field", ["frequency_penalty", "presence_penalty"])
def test_penalties_stop_a_repetition(client: OpenAI, field: str) -> None:
    question = "Repeat the word yes many times."
    plain = text_of(ask(client, question, temperature=0, max_tokens=16))
    assert plain.count("yes") >= 5
    assert text_of(ask(client, question, temperature=0, max_tokens=16, extra_body={field: 2.0})).count("yes") <= 1
    assert text_of(ask(client, question, temperature=0, max_tokens=16, extra_body={field: 0})) == plain


def test_ignore_eos_goes_on_to_max_tokens(client: OpenAI) -> None:
    stopped = ask(client, temperature=0, max_tokens=12)
    went_on = ask(client, temperature=0, max_tokens=12, extra_body={"ignore_eos": True})
    assert (stopped.choices[0].finish_reason, went_on.choices[0].finish_reason) == ("stop", "length")
    assert went_on.usage and went_on.usage.completion_tokens == 12
    assert text_of(went_on).startswith(text_of(stopped))


def test_a_stream_is_chunks_closed_by_done(client: OpenAI, stack: Stack) -> None:
    body = {"model": "demo/pirate", "messages": [{"role": "user", "content": PARIS}], "max_tokens": 6, "temperature": 0, "stream": True}
    with stack.client() as http, http.stream("POST", f"{client.base_url}chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = response.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len(chunks) >= 4, "it came in one piece"


@pytest.mark.parametrize("model", [BASE, "demo/pirate", "demo/json"])
def test_streamed_and_unstreamed_text_agree(client: OpenAI, model: str) -> None:
    whole = ask(client, model=model, temperature=0, max_tokens=20)
    chunks = ask_streamed(client, model=model, temperature=0, max_tokens=20)
    assert text_of(chunks) == text_of(whole) != ""
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {chunk.model for chunk in chunks} == {model}


def test_usage_comes_in_the_last_chunk_when_asked_for(client: OpenAI) -> None:
    whole = ask(client, model="demo/pirate", temperature=0, max_tokens=8)
    chunks = ask_streamed(client, model="demo/pirate", temperature=0, max_tokens=8, stream_options={"include_usage": True})
    assert whole.usage and chunks[-1].usage
    counted = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [getattr(chunks[-1].usage, name) for name in counted] == [getattr(whole.usage, name) for name in counted]
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all(chunk.usage is None for chunk in ask_streamed(client, model=TINY, max_tokens=2))


@pytest.mark.parametrize("messages", [PARIS, [PARIS], [{"role": "user", "content": PARIS}]], ids=["string", "list", "objects"])
def test_a_bare_string_is_one_user_message(client: OpenAI, stack: Stack, messages: object) -> None:
    body = {"model": TINY, "messages": messages, "temperature": 0, "max_tokens": 8}
    with stack.client() as http:
        answer = http.post(f"{client.base_url}chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == text_of(ask(client, model=TINY, temperature=0, max_tokens=8))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("asked", ["demo/pirate", ALIAS_OF_PIRATE, "a prefix", "the exact version", BASE])
def test_every_answer_says_what_answered(client: OpenAI, pirate: str, asked: str, streamed: bool) -> None:
    name = {"a prefix": pirate[: len("demo/pirate@") + 8], "the exact version": pirate}.get(asked, asked)
    exact = BASE if asked == BASE else pirate
    raw = client.with_raw_response.chat.completions.create(
        model=name, messages=[{"role": "user", "content": PARIS}], max_tokens=2, temperature=0, stream=streamed
    )
    headers = raw.http_response.headers
    assert headers.get_list("x-lorikeet-version") == [exact]
    assert len(headers.get_list("x-request-id")) == 1
    found = headers.get_list("x-lorikeet-cold")
    assert found == [] if asked == BASE else found[0] in ("gpu", "cpu", "disk", "store")
    answers = list(raw.parse()) if streamed else [raw.parse()]
    assert {answer.model for answer in answers} == {name}
    assert answers[-1].system_fingerprint == exact


def test_models_are_listed_and_retrieved(client: OpenAI, pirate: str) -> None:
    listed = {model.id: model for model in client.models.list().data}
    assert {BASE, TINY, "demo/pirate", "demo/json"} <= listed.keys()
    assert all(model.object == "model" and model.created > 1_600_000_000 and model.owned_by for model in listed.values())
    parents = {name: listed[name].model_extra["parent"] for name in (BASE, "demo/pirate")}
    assert parents == {BASE: None, "demo/pirate": BASE}
    assert client.models.retrieve(BASE).id == BASE
    for name in ("demo/pirate", ALIAS_OF_PIRATE, pirate):
        adapter = client.models.retrieve(name)
        assert (adapter.id, adapter.owned_by, adapter.model_extra["parent"], adapter.model_extra["version"]) == (name, "demo", BASE, pirate)


def test_the_sdk_raises_its_own_errors(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(client, model="nobody/nothing")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/nothing")
    with pytest.raises(openai.BadRequestError) as bad:
        ask(client, model=TINY, temperature=2.5)
    assert (bad.value.param, bad.value.code) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.AuthenticationError) as stranger:
        ask(client.with_options(api_key="lk-not-a-key"))
    assert stranger.value.code == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        ask_streamed(client.with_options(api_key="lk-not-a-key"))
