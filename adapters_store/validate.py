"""Whether an adapter may be published: everything that the engine would ignore or fail at later is refused here, with what to do.

Between an upload's files lying in a folder and `registry.publish`. The order: files, config, tensor names and shapes, the base, values, own
settings; all are asked, so that one refusal names every fault. What may be an adapter, and why, is in
docs/decisions/0002-what-an-adapter-may-be.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from adapters_store.adapter_files import CONFIG_FILE, WEIGHTS_FILE, file_faults
from adapters_store.base_model import BaseProfile
from adapters_store.errors import InvalidAdapter, InvalidRequest, Unavailable
from adapters_store.fit import Candidate, choose_base, untargeted_faults
from adapters_store.lora_tensors import read_pairs, tensor_faults
from adapters_store.own_settings import own_faults
from adapters_store.peft_config import config_faults, parse_config, read_raw_config
from adapters_store.safetensors_header import TensorInfo, read_header
from adapters_store.tensor_values import value_faults

MAX_HEADER_BYTES = 16 << 20  # a hundred thousand tensors; a base model's header may be longer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fit:
    """What a good adapter turned out to be: the id of the base model that serves it, and its rank."""

    base: str
    rank: int


def inspect(folder: Path, bases: Sequence[BaseProfile], *, base_hint: str | None = None) -> Fit:
    """Judge the adapter in `folder`, a folder of plain files that nobody else writes to.

    `base_hint` is the base model that the uploader named, if any. Reads every weight, in bounded memory. Blocks: run it in a thread.

    Raises InvalidAdapter with every reason found; Unavailable while no base model has told its profile yet.
    """
    if not bases:
        raise Unavailable("no base model has started yet, so no adapter can be checked: try again when one is up.")
    raw, config_faults_found = _read(folder / CONFIG_FILE, read_raw_config)
    tensors, header_faults = _read(folder / WEIGHTS_FILE, _read_tensors)
    faults = [*file_faults(folder), *config_faults_found, *header_faults]
    config = parse_config(raw) if raw is not None else None
    if raw is not None:
        faults += config_faults(raw)
    base: BaseProfile | None = None
    if tensors is not None:
        pairs = read_pairs(tensors)
        faults += tensor_faults(tensors, config.rank if config else None)
        if config is not None and pairs:
            candidate = Candidate(config, pairs)
            base, base_faults = _choose(candidate, bases, base_hint)
            faults += [*untargeted_faults(candidate), *base_faults]
        faults += value_faults(folder / WEIGHTS_FILE, pairs, config.scaling if config else 1.0)
    faults += own_faults(folder)
    if faults or base is None or config is None or config.rank is None:
        raise InvalidAdapter(faults)
    return Fit(base.id, config.rank)


def _read_tensors(path: Path) -> dict[str, TensorInfo]:
    return read_header(path, max_header_bytes=MAX_HEADER_BYTES)


def _read(path: Path, read: Callable[[Path], T]) -> tuple[T | None, list[str]]:
    """What `read` makes of a regular, non-empty file, or the reason why not. `file_faults` names the files that are none."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size == 0:
        return None, []
    try:
        return read(path), []
    except InvalidRequest as error:
        return None, [error.message]


def _choose(candidate: Candidate, bases: Sequence[BaseProfile], base_hint: str | None) -> tuple[BaseProfile | None, tuple[str, ...]]:
    try:
        return choose_base(candidate, bases, base_hint), ()
    except InvalidAdapter as error:
        return None, error.reasons
