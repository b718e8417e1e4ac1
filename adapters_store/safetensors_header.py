"""The header of a safetensors file: tensor names, dtypes, shapes and where their bytes lie. The weights are never loaded.

The first thing that validation reads of an upload's weights (`validate.py`) and of a base model's (`base_model.py`). It trusts
nothing: engines read these files in native code, so whatever the format forbids is refused here.

The format (github.com/huggingface/safetensors): 8 bytes little-endian N; N bytes of a JSON object, name -> {dtype, shape,
data_offsets} plus an optional `__metadata__` of strings; then the tensors' bytes, without gaps.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from adapters_store.errors import InvalidRequest
from adapters_store.strict_json import parse_object, quote

MAX_HEADER_BYTES = 100_000_000  # the format's own bound
LENGTH_BYTES = 8

BITS_OF_DTYPE = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor. `start` and `end` are byte offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES) -> dict[str, TensorInfo]:
    """Name -> TensorInfo of every tensor in the file, in the order of the header.

    Raises InvalidRequest, naming the file and the fault, when the file is truncated or not what the format allows.
    """
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        raw = _read_json_bytes(file, path.name, file_bytes, max_header_bytes)
    data_start = LENGTH_BYTES + len(raw)
    entries = parse_object(raw, f"the header of {path.name}")
    _check_metadata(entries.pop("__metadata__", {}), path.name)
    tensors = {name: _tensor(name, entry, data_start, path.name) for name, entry in entries.items()}
    _check_layout(tensors, data_start, file_bytes, path.name)
    return tensors


def _read_json_bytes(file: BinaryIO, name: str, file_bytes: int, max_header_bytes: int) -> bytes:
    prefix = file.read(LENGTH_BYTES)
    if len(prefix) < LENGTH_BYTES:
        raise InvalidRequest(f"{name} has {file_bytes} bytes, too few for a safetensors file: save and upload it again.")
    header_bytes = int.from_bytes(prefix, "little")
    if header_bytes > max_header_bytes:
        raise InvalidRequest(
            f"{name} announces a header of {header_bytes} bytes, more than the {max_header_bytes} allowed: it is not a safetensors file "
            "or is damaged; save and upload it again."
        )
    if LENGTH_BYTES + header_bytes > file_bytes:
        raise InvalidRequest(f"{name} is truncated: its header needs {header_bytes} bytes, the file has {file_bytes}. Upload it whole.")
    return file.read(header_bytes)


def _check_metadata(metadata: Any, name: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidRequest(f"{name} has a __metadata__ that is not a map of strings: save it again with safetensors.")


def _tensor(tensor: str, entry: Any, data_start: int, name: str) -> TensorInfo:
    where = f"{name}: tensor {quote(tensor)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InvalidRequest(f"{where} must have exactly dtype, shape and data_offsets: save it again with safetensors.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS_OF_DTYPE:
        raise InvalidRequest(f"{where} has the dtype {quote(dtype)}, which is not known: save it as F32, F16 or BF16.")
    if not _whole_numbers(shape):
        raise InvalidRequest(f"{where} has a shape that is not a list of whole numbers: save it again with safetensors.")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidRequest(f"{where} has data_offsets that are not a range of bytes: save it again with safetensors.")
    bits = math.prod(shape) * BITS_OF_DTYPE[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise InvalidRequest(
            f"{where} of dtype {dtype} and shape {quote(shape)} does not fill its {quote(offsets[1] - offsets[0])} bytes exactly: "
            "the file is damaged, save and upload it again."
        )
    return TensorInfo(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _whole_numbers(value: Any) -> bool:
    """A short list of ints from 0 to 2**63: anything larger is no size, and its product could cost time."""
    return isinstance(value, list) and len(value) <= 16 and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_layout(tensors: dict[str, TensorInfo], data_start: int, file_bytes: int, name: str) -> None:
    """The tensors' bytes cover the rest of the file without gaps or overlaps."""
    end = data_start
    for tensor, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != end:
            fault = "overlaps another" if info.start < end else "leaves a gap before it"
            raise InvalidRequest(f"{name}: tensor {quote(tensor)} {fault}: the file is damaged, save and upload it again.")
        end = info.end
    if end > file_bytes:
        raise InvalidRequest(f"{name} is truncated: its tensors end at byte {end}, the file has {file_bytes}. Upload it whole.")
    if end < file_bytes:
        raise InvalidRequest(f"{name} has {file_bytes - end} bytes after its last tensor: save and upload it again.")
