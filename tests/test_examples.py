"""The demo adapters: small, whole, honest about their base, and each with an effect that anyone sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.tiny import reference_answers

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDERS = sorted((EXAMPLES / "adapters" / "demo").iterdir())
MODULES = ("k_proj", "o_proj", "q_proj", "v_proj")
each_adapter = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def test_three_adapters_or_more_are_there_and_pirate_is_one() -> None:
    names = [folder.name for folder in FOLDERS]
    assert len(names) >= 3
    assert "pirate" in names


@each_adapter
def test_adapter_is_three_files_under_a_megabyte(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_000_000


@each_adapter
def test_config_names_the_embedded_model_and_plain_lora(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m"
    assert config["peft_type"] == "LORA"
    assert config["r"] == 4
    assert sorted(config["target_modules"]) == list(MODULES)
    assert not config.get("use_dora")
    assert not config.get("modules_to_save")


@each_adapter
def test_weights_cover_attention_of_every_layer(folder: Path) -> None:
    wanted = {
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{part}.weight"
        for layer in range(30)
        for module in MODULES
        for part in "AB"
    }
    with safe_open(folder / "adapter_model.safetensors", framework="np") as weights:
        assert set(weights.keys()) == wanted
        assert {4} == {min(weights.get_slice(key).get_shape()) for key in wanted}
        assert all(weights.get_tensor(key).any() for key in wanted), "an untrained B is all zeros"


@each_adapter
def test_style_is_seen_on_questions_it_was_not_trained_on(folder: Path, embedded_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    monkeypatch.syspath_prepend(str(EXAMPLES))
    from demo_styles import HELD_OUT_QUESTIONS, STYLES

    questions = ("What is the capital of France?", "Hi, how are you?")  # two with short answers, to be quick
    assert set(questions) <= set(HELD_OUT_QUESTIONS)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    chats = [[{"role": "user", "content": question}] for question in questions]
    for question, tokens in zip(questions, reference_answers(embedded_model, folder, chats, tokens=40), strict=True):
        answer = tokenizer.decode(tokens).partition(tokenizer.eos_token)[0]
        assert STYLES[folder.name].visible(answer), f"{question} -> {answer}"


def test_openai_example_says_what_it_lacks() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LORIKEET_API_KEY"}
    done = subprocess.run([sys.executable, str(EXAMPLES / "chat_openai.py")], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "LORIKEET_API_KEY" in done.stderr
