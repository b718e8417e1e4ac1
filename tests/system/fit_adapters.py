"""Adapters of every kind that is served, for the two models of the test stack: `test_fit_matrix.py` holds their answers against peft's.

PEFT says which tensors an adapter has, and writes its config; the values are random, seeded by the adapter's name. Each file is below the
test stack's upload limit of 8 MiB.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.system.stack import BASE, MAX_RANKS, TINY

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True, slots=True)
class FitAdapter:
    """`effect`: how large B·A times its scale is beside the base's weights. `fields`: further ones of peft's LoraConfig."""

    rank: int
    alpha: float
    targets: tuple[str, ...] | str
    dtype: torch.dtype = F32
    effect: float = 0.15
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The embedded model, wherever it takes so high a rank."""
        return BASE if self.rank <= MAX_RANKS[BASE] else TINY

    def config(self) -> LoraConfig:
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=targets,
            task_type="CAUSAL_LM",
            base_model_name_or_path=self.base,
            inference_mode=True,
            **self.fields,
        )

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.fields.get("use_rslora") else self.rank)


RSLORA = {"use_rslora": True}
FIT_ADAPTERS = {
    "q-alone-rank-1": FitAdapter(1, 0.5, ("q_proj",), effect=0.4),
    "k-alone-rank-64-rslora": FitAdapter(64, 128, ("k_proj",), F16, effect=0.4, fields=RSLORA),
    "v-alone-rank-2": FitAdapter(2, 128, ("v_proj",)),
    "o-alone-rank-16-rslora": FitAdapter(16, 1, ("o_proj",), BF16, fields=RSLORA),
    "attention-rank-8-rslora": FitAdapter(8, 128, ATTENTION, fields=RSLORA),
    "attention-rank-16": FitAdapter(16, 32, ATTENTION, BF16),
    "attention-rank-4-negative": FitAdapter(4, -8, ATTENTION, F16),
    "gate-alone-rank-16": FitAdapter(16, 8, ("gate_proj",), F16),
    "up-alone-rank-2": FitAdapter(2, 4, ("up_proj",)),
    "down-alone-rank-32": FitAdapter(32, 64, ("down_proj",), BF16),
    "feed-forward-rank-4-rslora": FitAdapter(4, 0.5, FEED_FORWARD, effect=0.1, fields=RSLORA),
    "all-linear-rank-8": FitAdapter(8, 16, "all-linear", BF16, effect=0.1),
    "all-listed-rank-1": FitAdapter(1, 1, (*ATTENTION, *FEED_FORWARD), effect=0.1),
    "pattern-rank-64": FitAdapter(64, 64, r".*\.(q|v)_proj", BF16),
    "pattern-of-layers-rank-16-rslora": FitAdapter(16, 0.5, r"model\.layers\.1\d\.mlp\.(up|down)_proj", fields=RSLORA),
    "whole-names-rank-64": FitAdapter(64, 128, ("model.layers.0.self_attn.v_proj", "model.layers.0.mlp.gate_proj"), effect=0.4),
    "first-layers-rank-16": FitAdapter(16, 16, ("q_proj", "o_proj"), fields={"layers_to_transform": [0, 1, 2, 3, 4, 5]}),
    "one-layer-rank-16": FitAdapter(
        16, 0.5, (*ATTENTION, *FEED_FORWARD), F16, effect=0.4, fields={"layers_to_transform": 12, "layers_pattern": "layers"}
    ),
    "exclusions-rank-8": FitAdapter(8, 4, "all-linear", F16, effect=0.1, fields={"exclude_modules": ["down_proj", "layers.0.mlp.up_proj"]}),
}


def fit_adapters_of(base: str) -> list[str]:
    """The names of those for one model."""
    return [name for name, adapter in FIT_ADAPTERS.items() if adapter.base == base]


def write_fit_adapters(home: Path, base_name: str, base_folder: Path) -> Mapping[str, Path]:
    """Write every adapter for one model into a folder of its own under `home`; name -> folder. The same files each time."""
    deviations = _deviations(base_folder)
    with torch.device("meta"):  # names and shapes alone
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base_folder))
    base.name_or_path = base_name
    for name in fit_adapters_of(base_name):
        adapter = FIT_ADAPTERS[name]
        config = adapter.config()
        config.save_pretrained(home / name)  # before PEFT replaces what it says, `all-linear` by all their names
        tensors = _tensors(adapter, _shapes(base, config), deviations, seed=zlib.crc32(name.encode()))
        save_file(tensors, home / name / "adapter_model.safetensors", metadata={"format": "pt"})
    return {name: home / name for name in fit_adapters_of(base_name)}


def _shapes(base: PreTrainedModel, config: LoraConfig) -> Mapping[str, torch.Size]:
    """The tensors that PEFT would save for this config."""
    with torch.device("meta"):
        model = get_peft_model(copy.deepcopy(base), copy.deepcopy(config))
    return {name: tensor.shape for name, tensor in sorted(get_peft_model_state_dict(model, save_embedding_layers=False).items())}


def _tensors(
    adapter: FitAdapter, shapes: Mapping[str, torch.Size], deviations: Mapping[str, float], *, seed: int
) -> dict[str, torch.Tensor]:
    """Random A and B, of one size, so that each product has `effect` times the deviation of the base's weight."""
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        module = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
        size = (adapter.effect * deviations[module] / (adapter.rank**0.5 * abs(adapter.scale))) ** 0.5
        tensors[name] = (size * torch.randn(shape, generator=random)).to(adapter.dtype)
    return tensors


def _deviations(base_folder: Path) -> Mapping[str, float]:
    """Standard deviation of each of the base's weight matrices."""
    with safe_open(base_folder / "model.safetensors", framework="pt") as base:
        names = [name for name in sorted(base.keys()) if name.endswith("_proj.weight")]
        return {name.removesuffix(".weight"): base.get_tensor(name).std().item() for name in names}
