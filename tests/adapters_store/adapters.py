"""Small PEFT adapters and base-model folders for tests, written by hand: no torch, no network, milliseconds.

`write_adapter` makes a folder that fits the base of `write_base`; its arguments, or a change to the config afterwards, make it unfit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

BASE_ID = "tiny"
HIDDEN, FEED_FORWARD, KEY_VALUE, LAYERS, VOCABULARY = 32, 64, 16, 2, 48

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

_SIZES = {  # out, in
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (KEY_VALUE, HIDDEN),
    "v_proj": (KEY_VALUE, HIDDEN),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (FEED_FORWARD, HIDDEN),
    "up_proj": (FEED_FORWARD, HIDDEN),
    "down_proj": (HIDDEN, FEED_FORWARD),
}

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]  # name -> dtype, shape, data


def module_sizes(layers: int = LAYERS) -> dict[str, tuple[int, int]]:
    """Every linear module of the small base -> (out, in)."""
    return {
        f"model.layers.{layer}.{'self_attn' if kind in ATTENTION else 'mlp'}.{kind}": size
        for layer in range(layers)
        for kind, size in _SIZES.items()
    }


def encode(values: np.ndarray[Any, Any], dtype: str) -> bytes:
    """The bytes of float values as F32, F16 or BF16 (cut off), little-endian."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def lora_tensors(sizes: Mapping[str, tuple[int, int]], *, rank: int, dtype: str = "F32", seed: int = 0) -> Tensors:
    """A random A [rank, in] and B [out, rank] for each module of `sizes`."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for module, (out, into) in sizes.items():
        for side, shape in (("A", (rank, into)), ("B", (out, rank))):
            values = random.normal(0.0, 0.02, shape)
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = (dtype, shape, encode(values, dtype))
    return tensors


def peft_config(**changes: Any) -> dict[str, Any]:
    """What PEFT 0.21 writes for a plain LoRA on q_proj and v_proj of the small base, with changes."""
    nothing = (
        "alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config", "exclude_modules", "kasa_config",
        "layer_replication", "layers_pattern", "layers_to_transform", "lora_ga_config", "megatron_config", "modules_to_save",
        "monteclora_config", "revision", "target_parameters", "trainable_token_indices", "use_bdlora", "velora_config",
    )  # fmt: skip
    off = ("ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_dora", "use_qalora", "use_rslora")
    return {
        **dict.fromkeys(nothing),
        **dict.fromkeys(off, False),
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": BASE_ID, "r": 4, "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"], "bias": "none", "inference_mode": True, "init_lora_weights": True,
        "lora_dropout": 0.05, "alpha_pattern": {}, "rank_pattern": {}, "loftq_config": {}, "megatron_core": "megatron.core",
        "qalora_group_size": 16, "peft_version": "0.21.2", **changes,
    }  # fmt: skip


def write_adapter(
    folder: Path,
    *,
    rank: int = 4,
    targets: Iterable[str] = ("q_proj", "v_proj"),
    dtype: str = "F32",
    seed: int = 0,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    **config: Any,
) -> Path:
    """An adapter folder as PEFT's save_pretrained leaves it. Different seeds give different weights; `sizes` are the base's modules.

    Other keyword arguments are fields of adapter_config.json. Returns `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = list(targets)
    chosen = {module: size for module, size in (sizes or module_sizes()).items() if module.rpartition(".")[2] in kinds}
    write_safetensors(folder / "adapter_model.safetensors", lora_tensors(chosen, rank=rank, dtype=dtype, seed=seed))
    fields = {"r": rank, "target_modules": kinds, **config}
    (folder / "adapter_config.json").write_text(json.dumps(peft_config(**fields), indent=2))
    (folder / "README.md").write_text("An adapter made by a test.\n")
    return folder


def write_base(folder: Path, *, shards: int = 1, config: Mapping[str, Any] | None = None) -> Path:
    """A Hugging Face folder of a small Llama with zero weights, in one or more safetensors files. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, tuple[int, ...]] = {f"{module}.weight": size for module, size in module_sizes().items()}
    for layer in range(LAYERS):
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (HIDDEN,)
    shapes["model.embed_tokens.weight"] = (VOCABULARY, HIDDEN)
    shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    shapes["model.norm.weight"] = (HIDDEN,)
    tensors = {name: ("BF16", shape, bytes(2 * int(np.prod(shape)))) for name, shape in shapes.items()}
    names = sorted(tensors)
    files = ["model.safetensors"] if shards == 1 else [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    for n, file in enumerate(files):
        write_safetensors(folder / file, {name: tensors[name] for name in names[n::shards]})
    if shards > 1:
        weight_map = {name: files[n % shards] for n, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", **(config or {})}))
    return folder


def write_opaque(root: Path, content: str) -> Path:
    """A folder for `content` in `root`, for tests that publish without validating: weights that nobody reads."""
    folder = root / content
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(content)
    return folder
