"""The short path is vLLM's own path, only cheaper: equal answers, field by field, up to ids, time and where chunks are cut.

Some hundred requests, generated over the fields that the short path takes, are answered on both paths of one engine (`both_paths.py`),
streamed and whole: four answers to each, which must tell the same.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.system.both_paths import ADAPTER, ASKED_NAME
from tests.tiny import make_random_adapter, make_tiny_llama

CASES = 220
TIMEOUT_SECONDS = 420.0

PROMPTS = (
    "hi", "Say something.", "¿Qué tal? 漢字 🙂", "a " * 40, "\n\n", "<|im_end|>", '{"json": "\\u0000"}', "Why is the sky blue?",
)  # fmt: skip
SYSTEMS = (None, "Be brief.", "你是一只鹦鹉。🦜", "")
SPLIT_TEXT = "🙂🇫🇷漢ß🦜\u200d"  # characters that are several tokens each, so that deltas end inside one
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"

Case = dict[str, Any]
Answer = Mapping[str, Any]


def generated_cases(folder: Path) -> list[Case]:
    """Requests over the fields of api.md that the short path takes; the same ones every time."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    generator = random.Random(2026)
    return [*_corner_cases(tokenizer), *(_case(generator, tokenizer) for _ in range(CASES))]


def _case(pick: random.Random, tokenizer: Any) -> Case:
    body: dict[str, Any] = {"messages": _messages(pick), "max_tokens": pick.choice((1, 2, 3, 8, 24, 48))}
    if pick.random() < 0.5:
        body["temperature"] = 0
    else:
        body |= {"seed": pick.randrange(1000), "temperature": pick.choice((0.5, 1, 1.7))}
    optional: dict[str, Any] = {
        "stream_options": pick.choice(({"include_usage": True}, {"include_usage": True}, {"include_usage": False}, {})),
        "stop": pick.choice((pick.choice(LETTERS), [pick.choice(LETTERS) + pick.choice(LETTERS), " "], ["qqqqq"], [])),
        "frequency_penalty": pick.choice((-2.0, -0.5, 1.5)),
        "presence_penalty": pick.choice((-1.0, 2.0)),
        "repetition_penalty": pick.choice((0.5, 1.3)),
        "top_p": pick.choice((0.1, 0.9, 1.0)),
        "top_k": pick.choice((-1, 1, 20)),
        "min_p": pick.choice((0.0, 0.2)),
        "logit_bias": {str(pick.randrange(100, 49000)): pick.choice((-100, 50, 100)) for _ in range(3)},
        "ignore_eos": pick.choice((True, False)),
        "skip_special_tokens": pick.choice((True, False)),
        "spaces_between_special_tokens": pick.choice((True, False)),
        "include_stop_str_in_output": pick.choice((True, False)),
        "stop_token_ids": [pick.randrange(17, 49000) for _ in range(200)],
        "min_tokens": pick.choice((0, 1)),
        "allowed_token_ids": tokenizer.encode(SPLIT_TEXT).ids,
        "bad_words": pick.sample(("the", "🙂", "a b"), 2),
        "truncate_prompt_tokens": pick.choice((3, 16)),
        "chat_template_kwargs": {"anything": 1},
        "user": "someone",
        "parallel_tool_calls": True,
        "add_special_tokens": pick.choice((True, False)),
        "cache_salt": "salt",
        "logprobs": False,
    }
    rare = {"allowed_token_ids", "truncate_prompt_tokens", "bad_words", "min_tokens", "stop_token_ids"}
    body |= {name: value for name, value in optional.items() if pick.random() < (0.12 if name in rare else 0.25)}
    if pick.random() < 0.2:
        body["max_completion_tokens"] = pick.choice((1, 5))
    if pick.random() < 0.05:
        body["max_tokens"] = 100_000  # more than the context holds: both refuse
    return {"adapter": pick.random() < 0.4, "body": body}


def _messages(pick: random.Random) -> list[dict[str, str]]:
    system = pick.choice(SYSTEMS)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for _ in range(pick.choice((0, 0, 1, 2))):
        messages += [{"role": "user", "content": pick.choice(PROMPTS)}, {"role": "assistant", "content": pick.choice(PROMPTS)}]
    return [*messages, {"role": "user", "content": pick.choice(PROMPTS)}]


def _corner_cases(tokenizer: Any) -> list[Case]:
    """What chance would not find: answers that end where they begin, or inside a character."""
    hi = [{"role": "user", "content": "hi"}]
    greedy: dict[str, Any] = {"messages": hi, "temperature": 0}
    end, word = tokenizer.token_to_id("<|im_end|>"), tokenizer.encode(" hello").ids[0]
    emoji = tokenizer.encode("🦜").ids
    usage = {"stream_options": {"include_usage": True}}
    bodies: list[dict[str, Any]] = [
        {**greedy, "allowed_token_ids": [end]},  # nothing but the end
        {**greedy, "allowed_token_ids": [end], **usage},
        {**greedy, "allowed_token_ids": [end], "ignore_eos": True, "max_tokens": 4, **usage},
        {**greedy, "allowed_token_ids": [end], "ignore_eos": True, "max_tokens": 4, "skip_special_tokens": False, **usage},
        {**greedy, "allowed_token_ids": [word], "stop": " hello", **usage},  # stopped by its first token
        {**greedy, "allowed_token_ids": [word], "stop": " hello", "include_stop_str_in_output": True, **usage},
        {**greedy, "allowed_token_ids": [word], "stop": "o hello", "max_tokens": 9, **usage},  # a stop string across two tokens
        {**greedy, "allowed_token_ids": [word], "stop_token_ids": [word], **usage},
        {**greedy, "allowed_token_ids": [word], "stop_token_ids": [word], "include_stop_str_in_output": True, **usage},
        {**greedy, "allowed_token_ids": [word], "max_tokens": 1},
        {**greedy, "allowed_token_ids": [emoji[0]], "max_tokens": 5, **usage},  # never a whole character
        *({**greedy, "allowed_token_ids": [piece], "max_tokens": 1} for piece in emoji),
        {"messages": hi, "seed": 1, "allowed_token_ids": emoji, "max_tokens": 40, **usage},
        {**greedy},  # the default length
        {**greedy, "logit_bias": {str(10**9): 1}},  # no such token: refused
        {**greedy, "allowed_token_ids": [10**9]},
        {**greedy, "stop": [""]},
        {**greedy, "min_tokens": 9, "max_tokens": 3},
        {**greedy, "messages": [{"role": "user", "content": "word " * 600}]},  # longer than the context
        {**greedy, "messages": [{"role": "assistant", "content": "I"}]},
        {**greedy, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {**greedy, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]}]},
        {**greedy, "messages": [{"role": "tool", "content": "42", "tool_call_id": "1"}], "max_tokens": 4},
        {**greedy, "messages": hi, "documents": [{"text": "x"}], "max_tokens": 4},
        {**greedy, "reasoning_effort": "low", "max_tokens": 4},
        {**greedy, "include_reasoning": False, "max_tokens": 4, **usage},
        {**greedy, "return_tokens_as_token_ids": True, "max_tokens": 4},
        {**greedy, "top_logprobs": 0, "max_tokens": 4},
        {**greedy, "tool_choice": "none", "max_tokens": 4},
        {**greedy, "length_penalty": 2.0, "max_tokens": 4},
        {**greedy, "n": 1, "max_tokens": 4, **usage},
    ]
    return [{"adapter": adapter, "body": body} for body in bodies for adapter in (False, True)]


@pytest.fixture(scope="module")
def answered(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("short_path")
    model, adapter, out = folder / "tiny", folder / "adapter", folder / "answers.json"
    make_tiny_llama(model, embedded_model)
    make_random_adapter(adapter, model, seed=5)
    cases = generated_cases(model)
    command = [sys.executable, "-m", "tests.system.both_paths", str(model), str(adapter), str(out)]
    done = subprocess.run(command, input=json.dumps(cases), text=True, capture_output=True, timeout=TIMEOUT_SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return list(zip(cases, json.loads(out.read_text()), strict=True))


def test_enough_requests_take_the_short_path(answered: list[tuple[Case, dict[str, Any]]]) -> None:
    taken = [answer for _, answer in answered if answer["is_plain"]]
    answers = [answer for answer in taken if "error" not in answer["short"]]
    assert len(taken) >= 200 and len(answers) >= 200
    texts = {_content(_chunks(answer["short"])) for answer in answers}
    assert "" in texts, "no answer was empty"
    assert any("\ufffd" in text for text in texts) and any("🦜" in text for text in texts), "no character was split over tokens"
    assert {_last(_chunks(answer["short"]))["finish_reason"] for answer in answers} == {"stop", "length"}
    assert len(taken) > len(answers), "nothing was refused"


def test_both_paths_stream_the_same_answer(answered: list[tuple[Case, dict[str, Any]]]) -> None:
    for case, answer in answered:
        if answer["is_plain"]:
            assert _told(answer["short"]) == _told(answer["full"]), case


def test_both_paths_give_the_same_whole_answer(answered: list[tuple[Case, dict[str, Any]]]) -> None:
    for case, answer in answered:
        if not answer["is_plain"]:
            continue
        short, full = answer["short_whole"], answer["full_whole"]
        assert short.get("error") == full.get("error"), case
        if "error" not in full:
            ours, theirs = (_without_id(json.loads(whole["text"])) for whole in (short, full))
            assert json.dumps(ours) == json.dumps(theirs), case


def test_a_stream_tells_what_the_whole_answer_tells(answered: list[tuple[Case, dict[str, Any]]]) -> None:
    for case, answer in answered:
        if not answer["is_plain"]:
            continue
        if "error" in answer["full_whole"]:
            assert answer["short"]["error"] == answer["full_whole"]["error"], case
            continue
        whole, chunks = json.loads(answer["full_whole"]["text"]), _chunks(answer["short"])
        [choice] = whole["choices"]
        assert _content(chunks) == (choice["message"]["content"] or ""), case
        last = _last(chunks)
        assert (last["finish_reason"], last["stop_reason"]) == (choice["finish_reason"], choice["stop_reason"]), case
        if (case["body"].get("stream_options") or {}).get("include_usage"):
            usage = chunks[-1]["usage"]
            assert usage == {name: whole["usage"][name] for name in usage}, case


def test_the_answer_names_what_was_asked_for_and_what_answered(answered: list[tuple[Case, dict[str, Any]]]) -> None:
    for case, answer in answered:
        if "error" in answer["full"]:
            continue
        for path in ("short", "full") if answer["is_plain"] else ("full",):
            chunks = _chunks(answer[path])
            assert {chunk["model"] for chunk in chunks} == {f"{ASKED_NAME}{'adapter' if case['adapter'] else 'base'}"}
            assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{answer[path]['id']}"}
            assert chunks[-1]["system_fingerprint"] == (ADAPTER.exact_name if case["adapter"] else "tiny")


def _told(answer: Answer) -> dict[str, Any]:
    """All that an answer says, but for ids, time and where its text is cut into chunks."""
    if "error" in answer:
        return {"error": answer["error"], "streamed": answer["text"]}
    chunks = _chunks(answer)
    deltas = [chunk for chunk in chunks[1:] if chunk["choices"]]
    return {
        "role": _without_id(chunks[0]),
        "content": _content(chunks),
        "delta_shapes": {_shape(chunk) for chunk in deltas[:-1]} or {_DELTA_SHAPE},
        "last": {**_without_id(deltas[-1]), "choices": {**deltas[-1]["choices"][0], "delta": _without_text(deltas[-1])}},
        "usage": [_without_id(chunk) for chunk in chunks if not chunk["choices"]],
    }


_DELTA_SHAPE = (
    '{"id": 0, "object": 0, "created": 0, "model": 0, "choices": [{"index": 0, "delta": {"content": 0}, "logprobs": 0, '
    '"finish_reason": 0, "token_ids": 0}]}'
)


def _without_text(last: dict[str, Any]) -> list[str]:
    """The names in the last delta, but for a text's: vLLM's own path, read late, gives the last token's text in one chunk with the end."""
    delta = last["choices"][0]["delta"]
    return sorted(name for name, value in delta.items() if name != "content" or not value)


def _shape(value: Any) -> str:
    """The names in `value`, in their order, without what they hold."""

    def bare(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: bare(inner) for name, inner in node.items()}
        return [bare(inner) for inner in node] if isinstance(node, list) else 0

    return json.dumps(bare(value))


def _chunks(answer: Answer) -> list[dict[str, Any]]:
    """The chunks of a complete stream."""
    events = answer["text"].split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""], events[-2:]
    assert all(event.startswith("data: ") for event in events[:-1])
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def _content(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def _last(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The choice of the chunk that ended it; there is exactly one."""
    [last] = [chunk["choices"][0] for chunk in chunks if chunk["choices"] and chunk["choices"][0]["finish_reason"]]
    return last  # type: ignore[no-any-return]


def _without_id(chunk: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(chunk["created"], int)
    return {name: value for name, value in chunk.items() if name not in ("id", "created")}
