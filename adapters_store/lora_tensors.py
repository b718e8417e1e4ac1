"""The names and shapes of an adapter's tensors, read as LoRA pairs: for each module an A [rank, in] and a B [out, rank].

Between `safetensors_header.py` and `fit.py` in validation. vLLM (parse_fine_tuned_lora_name in vllm/lora/utils.py) also takes keys without
PEFT's prefix, and fails on load at any other ending; it copies a pair of the wrong shape into a corner of its buffers without a word.
So names and shapes are held to exactly what PEFT saves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from adapters_store.safetensors_header import TensorInfo
from adapters_store.strict_json import quote

FLOAT_DTYPES = frozenset({"F32", "F16", "BF16"})
MAX_SHOWN = 3

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

# Spellings that mean something which is not served, or that another tool wrote; first match wins.
_FOREIGN_KEYS = (
    (re.compile(r"lora_magnitude_vector"), "belong to DoRA: train with use_dora=False"),
    (re.compile(r"lora_embedding_[AB]"), "adapt an embedding, which is not served: leave embed_tokens out of target_modules"),
    (re.compile(r"\.lora_[AB](\.\w+)?\.bias$"), "are biases, which are not served: train with lora_bias=False and bias='none'"),
    (re.compile(r"\.lora_[AB]\.\w+\.weight$"), "carry an adapter's name: save with PEFT's save_pretrained instead of the state dict"),
    (re.compile(r"modules_to_save|original_module"), "are whole modules, which are not served: train with modules_to_save=None"),
    (
        re.compile(r"base_layer\.|\.(embed_tokens|lm_head)\.weight$"),  # without a base_layer where new tokens made PEFT save them
        "are the base model's weights: save with save_embedding_layers=False, without new tokens",
    ),
    (re.compile(r"token_adapter|trainable_tokens"), "are trained tokens, which are not served: train with trainable_token_indices=None"),
    (re.compile(r"^base_model\.model\.(?!.*lora_).+\.bias$"), "are trained biases, which are not served: train with bias='none'"),
    (re.compile(r"^base_model\.model\.(?!.*lora_)"), "are whole weights, which are not served: train with modules_to_save=None"),
    (re.compile(r"\.lora_[AB]\.weight$"), "lack PEFT's prefix base_model.model.: save with PEFT's save_pretrained"),
)


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One adapted module, named as in the base model's checkpoint. `a` is [rank, in_features], `b` is [out_features, rank]."""

    module: str
    a: TensorInfo
    b: TensorInfo


def read_pairs(tensors: Mapping[str, TensorInfo]) -> tuple[LoraPair, ...]:
    """The complete, two-dimensional pairs among the tensors; `tensor_faults` says what is wrong with the rest."""
    sides = _sides(tensors)
    return tuple(
        LoraPair(module, found["A"], found["B"])
        for module, found in sides.items()
        if len(found) == 2 and all(len(info.shape) == 2 for info in found.values())
    )


def tensor_faults(tensors: Mapping[str, TensorInfo], rank: int | None) -> Iterator[str]:
    """Every reason why these tensors are no LoRA of that rank, whatever the base. A rank of None is not compared."""
    if not tensors:
        yield "adapter_model.safetensors holds no tensors: save the trained adapter, not an empty state dict."
        return
    yield from _foreign_key_faults(tensors)
    sides = _sides(tensors)
    alone = [f"{module} (only lora_{''.join(found)})" for module, found in sides.items() if len(found) == 1]
    if alone:
        yield f"lora_A and lora_B must come in pairs: {some(alone)}; save and upload the whole adapter."
    adapting = {name: info for name, info in tensors.items() if _KEY.fullmatch(name)}
    bad_dtype = [f"{name} is {info.dtype}" for name, info in adapting.items() if info.dtype not in FLOAT_DTYPES]
    if bad_dtype:
        yield f"weights must be F32, F16 or BF16: {some(bad_dtype)}; save the adapter in one of these."
    bad_shape = [f"{name} is {quote(list(info.shape))}" for name, info in adapting.items() if len(info.shape) != 2 or 0 in info.shape]
    if bad_shape:
        yield f"weights must have two dimensions, none of them 0: {some(bad_shape)}; train LoRA on linear layers alone."
    if rank is not None:
        yield from _rank_faults(read_pairs(tensors), rank)


def some(items: list[str]) -> str:
    """The first few of many, for a message: on one line, whatever a name from outside holds."""
    plain = [repr(item)[1:-1] for item in items[:MAX_SHOWN]]
    shown = ", ".join(item if len(item) <= 200 else item[:197] + "..." for item in plain)
    return shown if len(items) <= MAX_SHOWN else f"{shown} and {len(items) - MAX_SHOWN} more"


def _sides(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    """module -> {"A": …, "B": …}, of the tensors whose names are PEFT's."""
    sides: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        if match := _KEY.fullmatch(name):
            sides.setdefault(match["module"], {})[match["side"]] = info
    return sides


def _foreign_key_faults(tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    by_remedy: dict[str, list[str]] = {}
    for name in tensors:
        if not _KEY.fullmatch(name):
            remedy = next((remedy for pattern, remedy in _FOREIGN_KEYS if pattern.search(name)), "are no LoRA weights: save with PEFT")
            by_remedy.setdefault(remedy, []).append(name)
    for remedy, names in by_remedy.items():
        yield f"tensors {some(names)} {remedy}."


def _rank_faults(pairs: tuple[LoraPair, ...], rank: int) -> Iterator[str]:
    wrong = [
        f"{pair.module} has A {list(pair.a.shape)} and B {list(pair.b.shape)}"
        for pair in pairs
        if pair.a.shape[0] != rank or pair.b.shape[1] != rank
    ]
    if wrong:
        yield f"r is {rank}, so A must be [{rank}, in] and B [out, {rank}]: {some(wrong)}; upload the config that belongs to these weights."
