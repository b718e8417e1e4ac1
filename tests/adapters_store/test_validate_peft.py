"""What the real peft writes: plain LoRA gets in, and its other kinds are refused as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from adapters_store.base_model import BaseProfile, read_profile
from adapters_store.errors import InvalidAdapter
from adapters_store.validate import Fit, inspect


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseProfile:
    """The profile of the small Llama as transformers saves it."""
    folder = tmp_path_factory.mktemp("base")
    small_llama().save_pretrained(folder)
    return read_profile(folder, id="small", names=(), max_rank=16, adaptable=None)


def train(**config: Any) -> PeftModel:
    """A LoRA of the small Llama with every B changed from its zeros, as training would."""
    fields = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(small_llama(), LoraConfig(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
            assert torch.isfinite(parameter).all(), name
    return model


FIT: dict[str, dict[str, Any]] = {
    "plain": {},
    "rsLoRA": {"use_rslora": True, "lora_alpha": 32},
    "all linear": {"target_modules": "all-linear", "r": 8},
    "a pattern": {"target_modules": r".*layers\.1\..*(up|down)_proj"},
    "one layer": {"layers_to_transform": [1]},
    "one layer of a named list": {"layers_to_transform": 0, "layers_pattern": "layers"},
    "one layer of a list named by a pattern": {"layers_to_transform": [1], "layers_pattern": ["lay.rs"]},
    "modules excluded": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "layers.0.mlp.up_proj"]},
    "one module by its whole name": {"target_modules": ["model.layers.1.mlp.gate_proj"]},
    "a gaussian start": {"init_lora_weights": "gaussian"},
    "an orthogonal start": {"init_lora_weights": "orthogonal"},
    "a MiCA start": {"init_lora_weights": "mica"},
    "no task": {"task_type": None},
    "dropout": {"lora_dropout": 0.1, "bias": "none"},
}  # fmt: skip


@pytest.mark.parametrize("config", FIT.values(), ids=FIT)
def test_plain_lora_from_peft_gets_in(tmp_path: Path, base: BaseProfile, config: dict[str, Any]) -> None:
    train(**config).save_pretrained(tmp_path)
    assert inspect(tmp_path, [base]) == Fit("small", config.get("r", 4))


def test_bfloat16_from_peft_gets_in(tmp_path: Path, base: BaseProfile) -> None:
    train().to(torch.bfloat16).save_pretrained(tmp_path)
    assert inspect(tmp_path, [base]) == Fit("small", 4)


def test_pissa_converted_by_peft_gets_in_and_unconverted_is_refused(tmp_path: Path, base: BaseProfile) -> None:
    model = get_peft_model(
        small_llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights="pissa")
    )
    model.peft_config["default"].init_lora_weights = True  # PEFT's recipe: keep the start, to subtract it after training
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "as_is")
    with pytest.raises(InvalidAdapter, match="path_initial_model_for_weight_conversion"):
        inspect(tmp_path / "as_is", [base])
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    assert inspect(tmp_path / "converted", [base]) == Fit("small", 8)  # the conversion doubles the rank


UNFIT: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "DoRA": ({"use_dora": True}, ("use_dora is True", "belong to DoRA")),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, ("modules_to_save is",)),
    "biases": ({"bias": "all"}, ("bias is 'all'",)),
    "LoRA bias": ({"lora_bias": True}, ("lora_bias is True", "are biases")),
    "a rank pattern": ({"rank_pattern": {"q_proj": 2}}, ("rank_pattern is", "r is 4, so A must be")),
    "an alpha pattern": ({"alpha_pattern": {"q_proj": 2}}, ("alpha_pattern is",)),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, ("adapt an embedding", "are the base model's weights")),
    "the head": ({"target_modules": ["q_proj", "lm_head"]}, ("lacks or cannot adapt: lm_head",)),
    "trained tokens": ({"trainable_token_indices": [1, 2]}, ("trainable_token_indices is", "are trained tokens")),
    "activated LoRA": ({"alora_invocation_tokens": [1, 2]}, ("alora_invocation_tokens is",)),
    "OLoRA": ({"init_lora_weights": "olora"}, ("init_lora_weights is 'olora'",)),
    "a rank above the limit": ({"r": 32}, ("r is 32, base small takes up to 16",)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("config", "says"), UNFIT.values(), ids=UNFIT)
def test_other_kinds_from_peft_are_refused_as_such(
    tmp_path: Path, base: BaseProfile, config: dict[str, Any], says: tuple[str, ...]
) -> None:
    train(**config).save_pretrained(tmp_path)
    with pytest.raises(InvalidAdapter) as caught:
        inspect(tmp_path, [base])
    for words in says:
        assert words in caught.value.message


def test_an_adapter_as_peft_makes_it_before_training_is_refused(tmp_path: Path, base: BaseProfile) -> None:
    get_peft_model(small_llama(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    with pytest.raises(InvalidAdapter, match="would change nothing"):
        inspect(tmp_path, [base])


def test_an_adapter_of_the_headless_model_is_refused(tmp_path: Path, base: BaseProfile) -> None:
    model = get_peft_model(small_llama().model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidAdapter, match="train through AutoModelForCausalLM"):
        inspect(tmp_path, [base])
