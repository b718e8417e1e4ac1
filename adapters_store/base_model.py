"""What adapters are checked against: the profile of a base model, its linear modules with their sizes.

A replica reads it once from its model folder (config.json and safetensors headers, no weights) and keeps it in the store under
`bases/`; a gateway loads it to judge uploads (`validate.py`), so that it needs neither the model nor an engine.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote as url_quote

from adapters_store.errors import InternalError, InvalidRequest, NotFound
from adapters_store.objects import ObjectStore
from adapters_store.safetensors_header import TensorInfo, read_header
from adapters_store.strict_json import parse_object, quote

BASES_PREFIX = "bases/"
UNKNOWN_SIZE = 0  # out and in features of a quantised module whose stored shape is not the layer's

_MAX_JSON_BYTES = 64 << 20  # config.json and the index of shards
_WEIGHT_SUFFIXES = (".weight", ".qweight", ".weight_packed")  # plain and bitsandbytes or fp8; GPTQ and AWQ; compressed-tensors
_SHAPED_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})  # stored as [out, in], not packed

# LoRA on these is not served, whatever the engine says (docs/decisions/0002-what-an-adapter-may-be.md has the reasons).
_TABLES = frozenset({"embed_tokens", "wte", "wpe", "word_embeddings", "lm_head", "embed_out", "output_layer", "score", "classifier"})
_EXPERTS = "experts"


@dataclass(frozen=True, slots=True)
class BaseProfile:
    """A base model as adapters see it.

    `names` are all the names an adapter may give as its base. `modules` maps each module that LoRA can adapt, named as PEFT names it
    after `base_model.model.`, to (out_features, in_features); UNKNOWN_SIZE where the checkpoint does not tell.
    """

    id: str
    names: tuple[str, ...]
    architecture: str
    max_rank: int
    modules: Mapping[str, tuple[int, int]]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> BaseProfile:
        """Raises ValueError, KeyError or TypeError when `data` is not what `to_json` makes."""
        raw = json.loads(data)
        return cls(
            id=raw["id"],
            names=tuple(raw["names"]),
            architecture=raw["architecture"],
            max_rank=int(raw["max_rank"]),
            modules={name: (int(out), int(into)) for name, (out, into) in raw["modules"].items()},
        )


def read_profile(folder: Path, *, id: str, names: Collection[str], max_rank: int, adaptable: Collection[str] | None) -> BaseProfile:
    """The profile of the Hugging Face model in `folder`.

    `adaptable` are the modules that the running engine can adapt, by full name or last segment, as an adapter names them: the parts
    `q_proj`, `k_proj`, `v_proj` and not vLLM's packed `qkv_proj`. None takes every linear weight.

    Raises InvalidRequest when the folder holds no config.json or no safetensors, or when nothing in it can be adapted.
    """
    config = _read_json(folder / "config.json", id)
    quantised = bool(config.get("quantization_config"))
    modules: dict[str, tuple[int, int]] = {}
    for path in _weight_files(folder, id):
        for name, info in read_header(path).items():
            module = _module_of(name, info, quantised)
            if module is not None and _is_adaptable(module, adaptable):
                modules[module] = _size_of(info)
    if not modules:
        raise InvalidRequest(f"base model {id} has no module that LoRA can adapt: check that the engine supports LoRA on it.")
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else "unknown"
    return BaseProfile(id, tuple(dict.fromkeys([id, *names])), architecture, max_rank, dict(sorted(modules.items())))


def save_profile(store: ObjectStore, profile: BaseProfile) -> None:
    """Keep the profile in the store, over an earlier one of the same id."""
    store.put(_key(profile.id), profile.to_json())


def load_profile(store: ObjectStore, id: str) -> BaseProfile | None:
    """The profile kept for the base model `id`, or None where no replica of it has saved one yet."""
    try:
        data, _ = store.get(_key(id))
    except NotFound:
        return None
    try:
        return BaseProfile.from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InternalError(f"the stored profile of base model {id} cannot be read: restart its replicas, which write it again.") from None


def _key(id: str) -> str:
    return f"{BASES_PREFIX}{url_quote(id, safe='')}.json"


def _read_json(path: Path, id: str) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > _MAX_JSON_BYTES:
        raise InvalidRequest(f"base model {id} has no usable {path.name}: give a Hugging Face model folder.")
    return parse_object(path.read_bytes(), f"{path.name} of base model {id}")


def _weight_files(folder: Path, id: str) -> list[Path]:
    """The shards that the index names, else every safetensors file."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise InvalidRequest(f"base model {id} has no safetensors weights: convert it with save_pretrained(safe_serialization=True).")
        return found
    weight_map = _read_json(index, id).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidRequest(f"{index.name} of base model {id} has no weight_map: download the model again.")
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise InvalidRequest(f"base model {id} lacks the shard {quote(shard)} that its index names: download the model again.")
    return [folder / shard for shard in shards]


def _module_of(name: str, info: TensorInfo, quantised: bool) -> str | None:
    """The module whose matrix this tensor is, or None for biases, norms, scales and the like."""
    suffix = next((suffix for suffix in _WEIGHT_SUFFIXES if name.endswith(suffix)), None)
    if suffix is None or len(info.shape) != 2 or (suffix != ".weight" and not quantised):
        return None
    return name.removesuffix(suffix)


def _size_of(info: TensorInfo) -> tuple[int, int]:
    """(out, in); unknown for a packed tensor, e.g. the int32 of GPTQ or the uint8 of bitsandbytes."""
    return (info.shape[0], info.shape[1]) if info.dtype in _SHAPED_DTYPES else (UNKNOWN_SIZE, UNKNOWN_SIZE)


def _is_adaptable(module: str, adaptable: Collection[str] | None) -> bool:
    segments = module.split(".")
    last = segments[-1]
    if last in _TABLES or _EXPERTS in segments:
        return False
    if adaptable is not None:
        return module in adaptable or last in adaptable
    return not any(word in last for word in ("norm", "embed"))
