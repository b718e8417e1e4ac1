"""Every kind of damage to the tensors of an adapter, their names, shapes and values, and how the refusal says so."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.adapters_store.damage import Damage, Tensors, both, config_with, tensors_with

PREFIX = "base_model.model."
Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
QA, QB = f"{PREFIX}{Q}.lora_A.weight", f"{PREFIX}{Q}.lora_B.weight"
HIDDEN, RANK = 576, 4

_PAIRS = "lora_A and lora_B must come in pairs"
_OTHER_BASE = "this is another base's adapter, train it on smollm2-135m"
_BASE_WEIGHTS = ("are the base model's weights", "save_embedding_layers=False, without new tokens")


def renamed(name: str, to: str) -> Damage:
    return tensors_with(lambda tensors: tensors.update({to: tensors.pop(name)}))


def removed(name: str) -> Damage:
    return tensors_with(lambda tensors: tensors.pop(name))


def added(name: str, *shape: int) -> Damage:
    return tensors_with(lambda tensors: tensors.update({name: torch.ones(shape or (RANK, HIDDEN))}))


def each(change: Callable[[torch.Tensor], torch.Tensor], *names: str) -> Damage:
    """Every tensor (or those named) put through `change`."""
    return tensors_with(lambda tensors: tensors.update({name: change(tensors[name]) for name in names or tuple(tensors)}))


def last_value(name: str, value: float, dtype: torch.dtype = torch.float32) -> Damage:
    """All tensors in `dtype`, and one value of one tensor set: its last."""

    def change(tensors: Tensors) -> None:
        tensors.update({key: tensor.to(dtype) for key, tensor in tensors.items()})
        tensors[name][-1, -1] = value

    return tensors_with(change)


def every_layer(old: str, new: str) -> Damage:
    """`old` in every tensor's name made `new`."""
    return tensors_with(lambda tensors: [tensors.update({name.replace(old, new): tensors.pop(name)}) for name in tuple(tensors)])


def swapped(tensors: Tensors) -> None:
    """Every A called B and every B called A."""
    for name in [name for name in tensors if "lora_A" in name]:
        other = name.replace("lora_A", "lora_B")
        tensors[name], tensors[other] = tensors[other], tensors[name]


UNFIT_TENSORS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no tensors": (tensors_with(lambda tensors: tensors.clear()), ("holds no tensors", "save the trained adapter")),
    "B missing": (removed(QB), (_PAIRS, f"{Q} (only lora_A)", "upload the whole adapter")),
    "A missing": (removed(QA), (_PAIRS, f"{Q} (only lora_B)")),
    "a module missing": (both(removed(QA), removed(QB)), (f"target_modules says that {Q} are adapted", "upload the whole adapter")),
    "A and B swapped": (tensors_with(swapped), ("A must be [4, in]", "has A [576, 4] and B [4, 576]", "belongs to these weights")),
    "A transposed": (each(lambda a: a.T, QA), (f"{Q} has A [576, 4]",)),
    "one module of another rank": (
        both(each(lambda a: a.repeat(2, 1), QA), each(lambda b: b.repeat(1, 2), QB)),
        ("r is 4", f"{Q} has A [8, 576] and B [576, 8]", "the config that belongs to these weights"),
    ),
    "all of another rank": (
        tensors_with(lambda tensors: tensors.update({n: t.repeat((2, 1) if "lora_A" in n else (1, 2)) for n, t in tensors.items()})),
        ("r is 4", "has A [8, 576] and B [192, 8]"),
    ),
    "A narrower than its layer": (each(lambda a: a[:, :288], QA), (f"{Q} is for 576 out, 288 in, the base has 576 out", _OTHER_BASE)),
    "A wider than its layer": (each(lambda a: a.repeat(1, 2), QA), (f"{Q} is for 576 out, 1152 in", _OTHER_BASE)),
    "B shorter than its layer": (each(lambda b: b[:64], QB), (f"{Q} is for 64 out, 576 in", _OTHER_BASE)),
    "B longer than its layer": (each(lambda b: b.repeat(2, 1), QB), (f"{Q} is for 1152 out, 576 in", _OTHER_BASE)),
    "k_proj as if there were no grouped heads": (
        each(lambda b: b.repeat(3, 1), f"{PREFIX}{K}.lora_B.weight"), (f"{K} is for 576 out, 576 in, the base has 192 out", _OTHER_BASE),
    ),
    "three dimensions": (each(lambda a: a[..., None], QA), ("two dimensions", f"{QA} is [4, 576, 1]", "train LoRA on linear layers")),
    "one dimension": (each(lambda a: a.flatten(), QA), ("two dimensions", f"{QA} is [2304]")),
    "a size of 0": (each(lambda a: a[:, :0], QA), ("none of them 0", f"{QA} is [4, 0]")),
    "whole numbers": (each(lambda a: a.int(), QA), ("weights must be F32, F16 or BF16", f"{QA} is I32", "save the adapter in one of")),
    "double precision": (each(lambda t: t.double()), ("weights must be F32, F16 or BF16", "is F64")),
    "8-bit floats": (each(lambda t: t.to(torch.float8_e4m3fn)), ("weights must be F32, F16 or BF16", "is F8_E4M3")),
    "NaN in A": (last_value(QA, float("nan")), (f"weights hold NaN or infinity: {Q}.lora_A", "upload a good checkpoint")),
    "NaN in F16": (last_value(QA, float("nan"), torch.float16), (f"weights hold NaN or infinity: {Q}.lora_A",)),
    "NaN in BF16": (last_value(QB, float("nan"), torch.bfloat16), (f"weights hold NaN or infinity: {Q}.lora_B",)),
    "infinity in B": (last_value(QB, float("inf")), (f"weights hold NaN or infinity: {Q}.lora_B", "upload a good checkpoint")),
    "minus infinity in F16": (last_value(QB, float("-inf"), torch.float16), (f"NaN or infinity: {Q}.lora_B",)),
    "infinity in BF16": (last_value(QA, float("inf"), torch.bfloat16), (f"NaN or infinity: {Q}.lora_A",)),
    "all zero": (each(torch.zeros_like), ("every lora_A or lora_B is zero", "save it after training")),
    "every B zero, as before training": (
        tensors_with(lambda tensors: tensors.update({n: 0 * t for n, t in tensors.items() if "lora_B" in n})),
        ("every lora_A or lora_B is zero", "save it after training"),
    ),
    "every A minus zero": (
        tensors_with(lambda tensors: tensors.update({n: -0.0 * t.abs() for n, t in tensors.items() if "lora_A" in n})),
        ("every lora_A or lora_B is zero",),
    ),
}  # fmt: skip

UNFIT_NAMES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "an adapter's name in the key": (renamed(QA, f"{PREFIX}{Q}.lora_A.default.weight"), ("carry an adapter's name", "save_pretrained")),
    "no prefix": (every_layer(PREFIX, ""), ("lack PEFT's prefix base_model.model.", "save with PEFT's save_pretrained")),
    "one prefix too many": (every_layer(PREFIX, 2 * PREFIX), (f"modules that base smollm2-135m lacks or cannot adapt: {PREFIX}model",)),
    "another tool's names": (every_layer("lora_A", "lora_down"), ("lora_down.weight", "are no LoRA weights: save with PEFT")),
    "Diffusers' names": (every_layer(PREFIX, "unet."), ("unet.model.layers", "lack PEFT's prefix")),
    "trained without the head": (every_layer(f"{PREFIX}model.", PREFIX), ("model without its head", "train through AutoModelForCausalLM")),
    "a module that the base lacks": (
        every_layer("q_proj", "qkv_proj"),
        ("lacks or cannot adapt: model.layers.0.self_attn.qkv_proj", "it adapts down_proj, gate_proj"),
    ),
    "a layer that the base lacks": (
        every_layer("layers.29.", "layers.30."), ("lacks or cannot adapt: model.layers.30.self_attn.k_proj", "it adapts"),
    ),
    "a layer of 5000 digits": (
        both(every_layer("layers.29.", f"layers.{'9' * 5000}."), config_with(layers_to_transform=list(range(30)))),
        ("lacks or cannot adapt: model.layers.9999",),
    ),
    "a layer written 00": (every_layer("layers.0.", "layers.00."), ("lacks or cannot adapt: model.layers.00.self_attn.k_proj",)),
    "experts": (
        every_layer("self_attn.q_proj", "mlp.experts.0.up_proj"), ("mlp.experts.0.up_proj", "train on attention and dense layers"),
    ),
    "a DoRA magnitude": (
        added(f"{PREFIX}{Q}.lora_magnitude_vector", HIDDEN), (f"{Q}.lora_magnitude_vector belong to DoRA", "use_dora=False"),
    ),
    "a bias of B": (added(f"{PREFIX}{Q}.lora_B.bias", HIDDEN), (f"{Q}.lora_B.bias are biases", "train with lora_bias=False")),
    "a trained bias": (added(f"{PREFIX}{Q}.bias", HIDDEN), (f"{Q}.bias are trained biases", "train with bias='none'")),
    "an embedding": (
        added(f"{PREFIX}model.embed_tokens.lora_embedding_A"),
        ("embed_tokens.lora_embedding_A adapt an embedding", "leave embed_tokens out of target_modules"),
    ),
    "the head": (
        both(added(f"{PREFIX}lm_head.lora_A.weight"), added(f"{PREFIX}lm_head.lora_B.weight", 49152, RANK)),
        ("lacks or cannot adapt: lm_head", "it adapts"),
    ),
    "embeddings of extra new tokens": (added(f"{PREFIX}model.embed_tokens.weight", 99, HIDDEN), ("embed_tokens.weight", *_BASE_WEIGHTS)),
    "a head of extra new tokens": (added(f"{PREFIX}lm_head.weight", 99, HIDDEN), ("lm_head.weight", *_BASE_WEIGHTS)),
    "a base embedding": (added(f"{PREFIX}model.embed_tokens.base_layer.weight", 99, HIDDEN), ("base_layer.weight", *_BASE_WEIGHTS)),
    "trained tokens": (
        added(f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta", 2, HIDDEN),
        ("trainable_tokens_delta are trained tokens", "train with trainable_token_indices=None"),
    ),
    "a saved module": (
        added(f"{PREFIX}lm_head.modules_to_save.weight", 9, HIDDEN), ("modules_to_save.weight are whole modules", "modules_to_save=None"),
    ),
    "a saved module as PEFT writes it": (
        added(f"{PREFIX}model.norm.weight", HIDDEN), ("model.norm.weight are whole weights", "train with modules_to_save=None"),
    ),
    "a layer of the base": (added(f"{PREFIX}{Q}.weight", HIDDEN, HIDDEN), (f"{Q}.weight are whole weights", "modules_to_save=None")),
    "a tensor of something else": (added("optimizer.step", 1), ("optimizer.step are no LoRA weights", "save with PEFT")),
    "a name over two lines": (added("bad\nname", 1), ("bad\\nname are no LoRA weights",)),
}  # fmt: skip
