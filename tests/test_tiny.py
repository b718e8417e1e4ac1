"""The tools of the other tests: a tiny model that answers the same each time, and adapters that change what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import make_random_adapter, make_tiny_llama, reference_answers, references

CHATS = [[{"role": "user", "content": content}] for content in ("What is the capital of France?", "Why is the sky blue?")]


@pytest.fixture(scope="module")
def tiny(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    make_tiny_llama(folder, embedded_model)
    return folder


def test_tiny_model_is_a_few_megabytes_and_the_same_each_time(tiny: Path, embedded_model: Path, tmp_path: Path) -> None:
    make_tiny_llama(tmp_path, embedded_model)
    assert sum(file.stat().st_size for file in tiny.iterdir()) < 20_000_000
    assert (tmp_path / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert (tmp_path / "chat_template.jinja").read_text() == (embedded_model / "chat_template.jinja").read_text()


def test_every_random_adapter_answers_differently(tiny: Path, tmp_path: Path) -> None:
    answers = [reference_answers(tiny, None, CHATS)]
    for seed in range(4):
        make_random_adapter(tmp_path / str(seed), tiny, seed=seed)
        answers.append(reference_answers(tiny, tmp_path / str(seed), CHATS))
    for chat in range(len(CHATS)):
        assert len({tuple(found[chat]) for found in answers}) == len(answers)
    assert all(len(tokens) == 32 for found in answers for tokens in found)


def test_a_guess_changes_nothing_of_a_reference(tiny: Path, tmp_path: Path) -> None:
    make_random_adapter(tmp_path, tiny, seed=3)
    folders = [None, tmp_path]
    plain = references(tiny, folders, CHATS, 16)
    wrong = [[[*ids[:7], ids[7] + 1, *ids[8:]] for ids in found] for found in plain]
    others = [plain[1], plain[0]]
    for guesses in (plain, wrong, others, [[[], ids[:5]] for ids, _ in plain]):
        assert references(tiny, folders, CHATS, 16, guesses=guesses) == plain


def test_same_seed_makes_the_same_adapter(tiny: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_random_adapter(tmp_path / name, tiny, seed=5)
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == (tmp_path / "b" / "adapter_model.safetensors").read_bytes()
