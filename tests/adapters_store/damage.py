"""Ways to damage an adapter's folder, for tables of what must be refused. Each returns a function that changes the folder given to it.

Tensors are read and written by safetensors itself; what it would not write is changed in the file's bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LENGTH_BYTES = 8

Damage = Callable[[Path], None]
Tensors = dict[str, torch.Tensor]
Header = dict[str, Any]


def config_with(**changes: Any) -> Damage:
    """Fields of adapter_config.json set, or (to `...`) taken out."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps({field: value for field, value in config.items() if value is not ...}))

    return damage


def tensors_with(change: Callable[[Tensors], object]) -> Damage:
    """The weights' tensors changed, and saved as safetensors saves them."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def header_with(change: Callable[[Header], object]) -> Damage:
    """The weights' JSON header changed, which no library would write; the bytes after it stay."""
    return header_text(lambda text: json.dumps(_changed(json.loads(text), change)))


def header_text(change: Callable[[str], str]) -> Damage:
    """The same, of the header as text."""

    def damage(data: bytes) -> bytes:
        end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
        header = change(data[LENGTH_BYTES:end].decode()).encode()
        return len(header).to_bytes(LENGTH_BYTES, "little") + header + data[end:]

    return file_as(WEIGHTS, damage)


def file_as(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """The bytes of a file changed."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def with_file(name: str, data: bytes = b"x") -> Damage:
    """A file beside the adapter's own."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return damage


def without_file(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def both(first: Damage, second: Damage) -> Damage:
    def damage(folder: Path) -> None:
        first(folder)
        second(folder)

    return damage


def _changed(header: Header, change: Callable[[Header], object]) -> Header:
    change(header)
    return header
