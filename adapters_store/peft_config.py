"""adapter_config.json: what PEFT wrote about an adapter, and which of it an engine would honour.

Read by `validate.py`, before the tensors. vLLM reads seven of PEFT's fields and drops the others without a word (`PEFTHelper.from_dict`
in vllm/lora/peft_helper.py filters the unknown ones out), so every field here is either known to change nothing at serving time,
checked, or refused with what to do instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from adapters_store.errors import InvalidRequest
from adapters_store.strict_json import parse_object, quote

MAX_CONFIG_BYTES = 1 << 20
MAX_ALPHA = 1_000_000
MAX_LAYER_DIGITS = 9  # the name may come from an upload

# Fields of peft's LoraConfig (0.21) that say how the adapter was trained and change nothing in what it computes.
_BOOKKEEPING = frozenset({
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version", "lora_dropout",
    "megatron_config", "megatron_core", "runtime_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "layers_to_transform", "layers_pattern", "exclude_modules", "ensure_weight_tying", "target_modules",
    "peft_type", "r", "lora_alpha", "bias", "use_rslora", "init_lora_weights", "fan_in_fan_out",
})  # fmt: skip

# Fields that must be off: they add weights or a computation that vLLM does not do.
_MUST_BE_OFF = {
    "use_dora": "DoRA is not served; train with use_dora=False",
    "modules_to_save": "whole modules beside LoRA are not served; train with modules_to_save=None",
    "lora_bias": "a bias on LoRA's B is not served; train with lora_bias=False",
    "rank_pattern": "one adapter has one rank here; train with r alone, without rank_pattern",
    "alpha_pattern": "one adapter has one alpha here; train with lora_alpha alone, without alpha_pattern",
    "layer_replication": "replicated layers are not served; train without layer_replication",
    "trainable_token_indices": "trained token embeddings are not served; train with trainable_token_indices=None",
    "target_parameters": "LoRA on bare parameters is not served; train with target_modules alone",
    "alora_invocation_tokens": "activated LoRA would be applied to every token here; train without alora_invocation_tokens",
    "use_qalora": "QA-LoRA is not served; train with use_qalora=False",
    "arrow_config": "Arrow routing is not served; upload the LoRA adapters it routes between",
    "use_bdlora": "block-diagonal LoRA is not served; train with use_bdlora=None",
    "kasa_config": "KaSA changes the base model's weights; train without kasa_config",
    "monteclora_config": "Monte Carlo LoRA is not served; train without monteclora_config",
    "velora_config": "VeLoRA is not known to be served right; train without velora_config",
}

# Starts that leave the base model's weights alone. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) train against a changed base,
# so that the plain base plus their adapter is another model than the trained one.
_HARMLESS_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
_CONVERTIBLE_STARTS = ("pissa", "olora", "corda", "lora_ga")

# Transformers' classes whose weights fit a chat model of the same shape and mean something else (auto_mapping is PEFT's where no task is).
_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What the later checks need. None means: not given, or not usable (then a fault says so)."""

    rank: int | None
    base_name: str | None  # base_model_name_or_path as written
    base_class: str | None  # auto_mapping.base_model_class, e.g. LlamaForCausalLM
    targets: tuple[str, ...] | None  # None: a pattern, which is not evaluated
    all_linear: bool  # PEFT's word for every linear module but the head; `targets` is empty then
    excluded: tuple[str, ...] | None  # None: a pattern
    layers: frozenset[int] | None  # None: all
    layer_lists: tuple[str, ...] | None  # names of the module lists that `layers` counts in; empty: any; None: a pattern
    scaling: float = 1.0  # what B @ A is multiplied with

    @property
    def is_listed(self) -> bool:
        """Whether names alone say what is adapted. Patterns are not evaluated: a regular expression from outside can run for years."""
        return None not in (self.targets, self.excluded, self.layer_lists)

    def adapts(self, module: str) -> bool:
        """Whether PEFT would adapt this linear module of a base. Only where `is_listed`."""
        if _ends_with_any(module, self.excluded or ()):
            return False
        if self.all_linear or module in (self.targets or ()):
            return True
        return _ends_with_any(module, self.targets or ()) and (self.layers is None or self._layer_of(module) in self.layers)

    def _layer_of(self, module: str) -> int | None:
        """The first number in the module's path that counts in one of `layer_lists`, like PEFT's check_target_module_exists."""
        parts, lists = module.split("."), self.layer_lists or ()
        for place in range(1, len(parts) - 1):
            if parts[place].isdecimal() and ((place > 1 and not lists) or parts[place - 1] in lists):
                return int(parts[place]) if len(parts[place]) <= MAX_LAYER_DIGITS else None
        return None


def read_raw_config(path: Path) -> dict[str, Any]:
    """The JSON object in the file. Raises InvalidRequest when it is not one, is too large, or repeats a key."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidRequest(f"{path.name} is larger than {MAX_CONFIG_BYTES} bytes: upload the one that PEFT wrote.")
    return parse_object(path.read_bytes(), path.name)


def parse_config(raw: Mapping[str, Any]) -> PeftConfig:
    """The usable part of the config; `config_faults` says what is wrong with the rest."""
    rank = raw.get("r")
    mapping = raw.get("auto_mapping")
    base_class = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    name = raw.get("base_model_name_or_path")
    layers = raw.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    lists = raw.get("layers_pattern") or []
    lists = [lists] if isinstance(lists, str) else lists
    all_linear = _is_all_linear(raw.get("target_modules"))
    return PeftConfig(
        rank=rank if _is_int(rank) and rank > 0 else None,
        base_name=name.strip() if isinstance(name, str) and name.strip() else None,
        base_class=base_class if isinstance(base_class, str) else None,
        targets=() if all_linear else _names(raw.get("target_modules")),
        all_linear=all_linear,
        excluded=_names(raw.get("exclude_modules") or []),
        layers=frozenset(layers) if isinstance(layers, list) and layers and all(map(_is_int, layers)) else None,
        layer_lists=_names(lists) if isinstance(lists, list) and not any(map(_is_pattern, lists)) else None,
        scaling=_scaling(raw),
    )


def _scaling(raw: Mapping[str, Any]) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA; 1 where they are not usable."""
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not _is_int(rank) or not 0 < rank <= MAX_ALPHA:
        return 1.0
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not -MAX_ALPHA <= alpha <= MAX_ALPHA:
        return 1.0
    return alpha / math.sqrt(rank) if raw.get("use_rslora") is True else alpha / rank


def config_faults(raw: Mapping[str, Any]) -> Iterator[str]:
    """Every reason why an adapter with this config cannot be served, each a sentence that names the field, its value and a remedy."""
    if raw.get("peft_type") != "LORA":
        yield f"peft_type is {quote(raw.get('peft_type'))}: only LORA adapters are served."
    yield from _number_faults(raw)
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        yield f"task_type is {quote(raw['task_type'])}: train the adapter for chat, with task_type CAUSAL_LM."
    if raw.get("bias", "none") != "none":
        yield f"bias is {quote(raw['bias'])}: trained biases are not served; train with bias='none'."
    for field in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(raw.get(field, False), bool):
            yield f"{field} is {quote(raw[field])}: it must be true or false."
    if raw.get("fan_in_fan_out") is True:
        yield "fan_in_fan_out is true: the layers served here are linear; train with fan_in_fan_out=False."
    yield from _start_faults(raw.get("init_lora_weights", True))
    yield from _target_faults(raw)
    yield from _layer_faults(raw)
    yield from _base_faults(raw)
    # PEFT writes what is off as null, false, {} or [].
    for field, remedy in _MUST_BE_OFF.items():
        if raw.get(field):
            yield f"{field} is {quote(raw[field])}: {remedy}."
    for field, value in raw.items():
        if field not in _BOOKKEEPING and field not in _MUST_BE_OFF and value:
            yield f"{quote(field)} is {quote(value)}: the field is not known here, so it would be ignored; remove it if it changes nothing."


def _number_faults(raw: Mapping[str, Any]) -> Iterator[str]:
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not _is_int(rank) or rank <= 0:
        yield f"r is {quote(rank)}: it must be the rank, a whole number above 0."
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not -MAX_ALPHA <= alpha <= MAX_ALPHA:
        yield f"lora_alpha is {quote(alpha)}: it must be a number, at most {MAX_ALPHA}."
    elif alpha == 0:
        yield "lora_alpha is 0: the adapter would change nothing; give the alpha it was trained with."
    dropout = raw.get("lora_dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        yield f"lora_dropout is {quote(dropout)}: it must be a number from 0 to 1."


def _start_faults(start: Any) -> Iterator[str]:
    if isinstance(start, bool) or start is None or (isinstance(start, str) and start.lower() in _HARMLESS_STARTS):
        return
    if isinstance(start, str) and start.lower().startswith(_CONVERTIBLE_STARTS):
        yield (
            f"init_lora_weights is {quote(start)}, which trains against changed base weights: save the adapter again with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...), which turns it into plain LoRA."
        )
    else:
        yield f"init_lora_weights is {quote(start)}, which is not known to leave the base model alone: train with init_lora_weights=True."


def _target_faults(raw: Mapping[str, Any]) -> Iterator[str]:
    targets = raw.get("target_modules")
    if not (isinstance(targets, str) and targets) and not _names(targets):
        yield f"target_modules is {quote(targets)}: it must be a list of module names or a pattern, as PEFT writes it."
    excluded = raw.get("exclude_modules")
    if excluded is not None and not isinstance(excluded, str) and _names(excluded) is None:
        yield f"exclude_modules is {quote(excluded)}: it must be a list of module names or a pattern."


def _layer_faults(raw: Mapping[str, Any]) -> Iterator[str]:
    """What PEFT itself would not load, too (LoraConfig.__post_init__)."""
    layers, lists = raw.get("layers_to_transform"), raw.get("layers_pattern")
    if layers is not None and not _is_int(layers) and not (isinstance(layers, list) and all(map(_is_int, layers))):
        yield f"layers_to_transform is {quote(layers)}: it must be a layer's number or a list of them."
    if lists is not None and not isinstance(lists, str) and _names(lists) is None:
        yield f"layers_pattern is {quote(lists)}: it must be the name of the list of layers, or several."
    if lists and layers is None:
        yield f"layers_pattern is {quote(lists)} and layers_to_transform is not given: say which layers, or remove both."
    if isinstance(raw.get("target_modules"), str) and (lists or layers not in (None, [])):
        yield "layers_to_transform and layers_pattern go with a list of target_modules, not a pattern: upload the config that PEFT wrote."


def _base_faults(raw: Mapping[str, Any]) -> Iterator[str]:
    base, mapping = raw.get("base_model_name_or_path"), raw.get("auto_mapping")
    if base is not None and not isinstance(base, str):
        yield f"base_model_name_or_path is {quote(base)}: it must be the base model's name."
    base_class = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if isinstance(base_class, str) and base_class.endswith(_OTHER_HEADS):
        yield f"it was trained on a {quote(base_class)}: train it for chat, through AutoModelForCausalLM."


def _names(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    return None


def _is_all_linear(targets: Any) -> bool:
    return isinstance(targets, str) and targets.lower() == "all-linear"


def _is_pattern(layer_list: Any) -> bool:
    """PEFT reads these names as regular expressions; most are plain words."""
    return isinstance(layer_list, str) and not re.fullmatch(r"\w+", layer_list)


def _ends_with_any(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
