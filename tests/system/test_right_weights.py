"""The right weights, always: what is served equals what transformers + peft compute from the same files, token for token.

The base and more adapters than the engine has slots answer in one batch. The control shows that these tests would see it if vLLM's CPU
kernels gave a base request an adapter's weights, as they do without `deployments/engine/cpu_lora.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.system.asking import Answer, ask, long_chat, user
from tests.system.stack import BASE, SLOTS, Stack
from tests.tiny import Chat, make_random_adapter, make_tiny_llama, references

DEMO = Path(__file__).parents[2] / "examples" / "adapters" / "demo"
TOKENS = 32
CHATS = [
    user("What is the capital of France?"),
    user("Why is the sky blue?"),
    user("Name three animals that can fly."),
    [{"role": "system", "content": "You are a cook."}, *user("How do I boil an egg?")],
    user("Write one sentence about the sea."),
]
RANDOM_SEEDS = (71, 72)
ENGINE_TIMEOUT_SECONDS = 800.0
pytestmark = pytest.mark.timeout(900)  # two engines start at once

Reference = Mapping[str, list[list[int]]]  # name -> token ids for each chat
Served = Mapping[tuple[str, int, str], Answer]  # name, number of the chat, "ids" or "text"


@pytest.fixture(scope="module")
def adapters(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Every demo adapter and two random ones, published: name -> the folder it was published from."""
    folders = {f"demo/{weights.parent.name}": weights.parent for weights in sorted(DEMO.glob("*/adapter_model.safetensors"))}
    for name, folder in folders.items():
        stack.push(folder, name)
    for seed in RANDOM_SEEDS:
        folder = tmp_path_factory.mktemp("weights") / f"random-{seed}"
        stack.push_random(folder, f"weights/{folder.name}", seed=seed, base=BASE)
        folders[f"weights/{folder.name}"] = folder
    assert len(folders) > SLOTS
    return folders


@pytest.fixture(scope="module")
def reference(stack: Stack, adapters: Mapping[str, Path], served: Served, one_thread: None) -> Reference:
    names = [BASE, *adapters]
    guesses = [[served[name, number, "ids"].token_ids for number in range(len(CHATS))] for name in names]
    answers = references(stack.base_folder, [None, *adapters.values()], CHATS, TOKENS, guesses=guesses)
    return dict(zip(names, answers, strict=True))


@pytest.fixture(scope="module")
def served(stack: Stack, adapters: Mapping[str, Path]) -> Served:
    """One mixed batch, all of it sent at once: each name and chat with token ids, streamed or not in turns, and as a plain text stream."""

    async def ask_all() -> Served:
        async with stack.async_client(timeout_seconds=400) as client:
            questions = {}
            for number, chat in enumerate(CHATS):
                for turn, name in enumerate([BASE, *adapters]):
                    streamed = (number + turn) % 2 == 0
                    questions[name, number, "ids"] = ask(client, name, chat, tokens=TOKENS, stream=streamed, return_token_ids=True)
                    questions[name, number, "text"] = ask(client, name, chat, tokens=TOKENS, stream=True)
            return dict(zip(questions, await asyncio.gather(*questions.values()), strict=True))

    return asyncio.run(ask_all())


def test_every_weight_answers_differently_so_that_a_mix_up_would_show(reference: Reference) -> None:
    for number in range(len(CHATS)):
        assert len({tuple(answers[number]) for answers in reference.values()}) == len(reference)


def test_mixed_batch_equals_transformers_and_peft_token_for_token(served: Served, reference: Reference) -> None:
    wrong = {
        (name, number): (served[name, number, "ids"].token_ids, expected)
        for name, answers in reference.items()
        for number, expected in enumerate(answers)
        if served[name, number, "ids"].token_ids != expected
    }
    assert not wrong


def test_plain_text_streams_of_the_same_batch_say_the_same(stack: Stack, served: Served, reference: Reference) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stack.base_folder)
    for name, answers in reference.items():
        for number, token_ids in enumerate(answers):
            # A character whose last bytes are still to come is not served; decode shows a mark in its place.
            expected = tokenizer.decode(token_ids, skip_special_tokens=True).rstrip("\ufffd")
            assert served[name, number, "text"].text == expected, (name, number)


def test_every_answer_names_the_weights_that_gave_it(stack: Stack, served: Served, adapters: Mapping[str, Path]) -> None:
    exact = {BASE: BASE}
    with stack.client() as client:
        for name in adapters:
            exact[name] = f"{name}@{client.get(f'adapters/{name}').raise_for_status().json()['aliases']['production']}"
    for (name, _, _), answer in served.items():
        assert (answer.version, answer.fingerprint) == (exact[name], exact[name])
        assert (answer.cold is None) == (name == BASE)


@pytest.fixture(scope="module")
def tiny(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A tiny model and two adapters of it, one for each slot."""
    home = tmp_path_factory.mktemp("control")
    make_tiny_llama(home / "model", embedded_model)
    for number in range(SLOTS):
        make_random_adapter(home / str(number), home / "model", seed=80 + number)
    return home / "model", [home / str(number) for number in range(SLOTS)]


@pytest.fixture(scope="module")
def engines(tiny: tuple[Path, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """What an engine with the remedy and one without it answer to the same mixed batch."""
    home = tmp_path_factory.mktemp("engines")
    remedies = {"with": {}, "without": {"LORIKEET_WITHOUT_CPU_LORA_REMEDY": "1"}}
    with ThreadPoolExecutor(len(remedies)) as threads:
        runs = {name: threads.submit(_run_engine, tiny, home / f"{name}.json", extra) for name, extra in remedies.items()}
        return {name: run.result() for name, run in runs.items()}


def _run_engine(tiny: tuple[Path, list[Path]], answers: Path, extra: Mapping[str, str]) -> Any:
    model, adapters = tiny
    command = [sys.executable, "-m", "tests.system.mixed_batch", str(model), str(answers), *map(str, adapters)]
    asked = answers.with_suffix(".asked")
    asked.write_text(json.dumps({"chats": CHATS, "shared": long_chat(), "tokens": TOKENS}))
    log = answers.with_suffix(".log")
    with asked.open() as stdin, log.open("w") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **extra}, stdin=stdin, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(ENGINE_TIMEOUT_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # vLLM's processes too, if they did not end with it
    assert process.returncode == 0, log.read_text()[-4000:]
    return json.loads(answers.read_text())


@pytest.fixture(scope="module")
def tiny_reference(tiny: tuple[Path, list[Path]], one_thread: None) -> Reference:
    """Token ids for each chat and, last, for the long shared one."""
    model, adapters = tiny
    chats: list[Chat] = [*CHATS, long_chat()]
    return dict(zip(["base", "0", "1"], references(model, [None, *adapters], chats, TOKENS), strict=True))


def test_engine_with_the_remedy_gives_each_request_its_own_weights(engines: Mapping[str, Any], tiny_reference: Reference) -> None:
    assert engines["with"]["mixed"] == {name: answers[:-1] for name, answers in tiny_reference.items()}


def test_without_the_remedy_the_base_answers_with_an_adapters_weights(engines: Mapping[str, Any], tiny_reference: Reference) -> None:
    """When this fails, vLLM has been mended: drop deployments/engine/cpu_lora.py."""
    mixed = engines["without"]["mixed"]
    for number in range(len(CHATS)):
        assert mixed["base"][number] != tiny_reference["base"][number]
    for name in ("0", "1"):
        assert mixed[name] == tiny_reference[name][:-1]


def test_prefix_cache_is_used_and_never_shared_between_weights(engines: Mapping[str, Any], tiny_reference: Reference) -> None:
    engine = engines["with"]
    assert engine["prefix_caching"]
    first, again = engine["shared"]
    for name, answers in tiny_reference.items():
        assert first[name] == [answers[-1], 0], f"{name} found another's prompt in the prefix cache, or answered wrong"
        assert again[name][0] == answers[-1]
        assert again[name][1] > 0, "the prefix cache was not used"
