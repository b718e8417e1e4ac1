"""Every kind of adapter that is let in is served as transformers + peft compute it from the same files, token for token.

Ranks, alphas, rsLoRA, modules, dtypes and ways to write targets: `fit_adapters.py`. All are published over HTTP, then asked in mixed
batches, several at once; the reference is computed after them, and takes what was served as a guess that changes nothing but its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.system.asking import Answer, ask, user
from tests.system.fit_adapters import FIT_ADAPTERS, fit_adapters_of, write_fit_adapters
from tests.system.stack import BASE, ROOM, TINY, Stack
from tests.tiny import references

TOKENS = 32
PUSHES_AT_ONCE = 4  # as many as a gateway takes
CHATS = [user("Why is the sky blue?"), user("Write one sentence about the sea.")]
OWNER = "fit"
pytestmark = pytest.mark.timeout(900)  # the stack may have to start

Served = Mapping[str, list[Answer]]  # name -> an answer for each chat
Reference = Mapping[str, list[list[int]]]  # name -> token ids for each chat


@pytest.fixture(scope="module")
def adapters(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Every fit adapter, published: name -> the folder it was published from."""
    home = tmp_path_factory.mktemp("fit")
    folders = {name: folder for base, model in _models(stack).items() for name, folder in write_fit_adapters(home, base, model).items()}
    with ThreadPoolExecutor(PUSHES_AT_ONCE) as threads:
        list(threads.map(lambda name: stack.push(folders[name], f"{OWNER}/{name}"), folders))
    return folders


@pytest.fixture(scope="module")
def answers(stack: Stack, adapters: Mapping[str, Path], one_thread: None) -> tuple[Served, Reference]:
    """What is served, and what transformers + peft say."""
    served = asyncio.run(_ask_all(stack, list(adapters)))
    expected: dict[str, list[list[int]]] = {}
    for base, model in _models(stack).items():
        names = fit_adapters_of(base)
        guesses: list[list[list[int]]] = [[[]] * len(CHATS), *([answer.token_ids for answer in served[name]] for name in names)]
        found = references(model, [None, *map(adapters.get, names)], CHATS, TOKENS, guesses=guesses)
        expected |= zip([base, *names], found, strict=True)
    return served, expected


def _models(stack: Stack) -> Mapping[str, Path]:
    return {BASE: stack.base_folder, TINY: stack.tiny_folder}


async def _ask_all(stack: Stack, names: list[str]) -> Served:
    """All chats of as many adapters at once as the engine has room for, in turns over its slots."""
    room = asyncio.Semaphore(ROOM)

    async def ask_one(name: str) -> list[Answer]:
        async with room:
            asked = [ask(client, f"{OWNER}/{name}", chat, tokens=TOKENS, return_token_ids=True) for chat in CHATS]
            return await asyncio.gather(*asked)

    async with stack.async_client(timeout_seconds=400) as client:
        return dict(zip(names, await asyncio.gather(*map(ask_one, names)), strict=True))


@pytest.mark.parametrize("name", FIT_ADAPTERS)
def test_a_fit_adapter_is_served_as_peft_answers(answers: tuple[Served, Reference], name: str) -> None:
    served, reference = answers
    assert [answer.token_ids for answer in served[name]] == reference[name]
    assert all(answer.version.startswith(f"{OWNER}/{name}@") for answer in served[name])


def test_every_fit_adapter_answers_differently_so_that_one_left_out_would_show(answers: tuple[Served, Reference]) -> None:
    _, reference = answers
    for base in (BASE, TINY):
        names = [base, *fit_adapters_of(base)]
        for number in range(len(CHATS)):
            assert len({tuple(reference[name][number]) for name in names}) == len(names)
