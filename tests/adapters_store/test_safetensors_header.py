"""safetensors_header.py: what is no safetensors file is refused with the fault, and nothing else can happen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adapters_store.errors import InvalidRequest
from adapters_store.safetensors_header import read_header


def file_of(folder: Path, header: Any, data: bytes = b"", *, text: bytes | None = None, length: int | None = None) -> Path:
    raw = json.dumps(header).encode() if text is None else text
    path = folder / "x.safetensors"
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0, 3)}
    save_file(tensors, path, metadata={"format": "pt"})
    header = read_header(path)
    assert {name: (info.dtype, info.shape) for name, info in header.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("BF16", (4,)),
        "c": ("F32", (0, 3)),
    }
    data = path.read_bytes()
    assert data[header["a"].start : header["a"].end] == tensors["a"].numpy().tobytes()


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("empty header text", {"header": None, "text": b""}, "not valid JSON"),
    ("not JSON", {"header": None, "text": b"{]"}, "not valid JSON"),
    ("not UTF-8", {"header": None, "text": b'{"\xff": 1}'}, "not UTF-8"),
    ("nested", {"header": None, "text": b'{"a":' * 100_000}, "nested too deeply"),
    ("a list", {"header": []}, "not a JSON object"),
    ("a key twice", {"header": None, "text": b'{"a": 1, "a": 2}'}, "'a' stands twice"),
    ("bad metadata", {"header": {"__metadata__": {"a": 1}}}, "__metadata__"),
    ("header beyond the file", {"header": {}, "length": 1000}, "truncated"),
    ("huge header", {"header": {}, "length": 1 << 63}, "announces a header"),
    ("unknown dtype", {"header": {"a": entry(dtype="F7")}, "data": bytes(8)}, "dtype 'F7'"),
    ("dtype no string", {"header": {"a": entry(dtype=["F32"])}, "data": bytes(8)}, "not known"),
    ("negative shape", {"header": {"a": entry(shape=(-2, -1))}, "data": bytes(8)}, "whole numbers"),
    ("float shape", {"header": {"a": entry(shape=(2.0,))}, "data": bytes(8)}, "whole numbers"),
    ("true as a size", {"header": {"a": entry(shape=(True, 2))}, "data": bytes(8)}, "whole numbers"),
    ("huge size", {"header": {"a": entry(shape=(10**40,))}, "data": bytes(8)}, "whole numbers"),
    ("one offset", {"header": {"a": entry(offsets=(0,))}, "data": bytes(8)}, "range of bytes"),
    ("offsets reversed", {"header": {"a": entry(offsets=(8, 0))}, "data": bytes(8)}, "range of bytes"),
    ("a missing field", {"header": {"a": {"dtype": "F32", "shape": [2]}}, "data": bytes(8)}, "exactly dtype, shape"),
    ("an entry that is no object", {"header": {"a": 3}}, "exactly dtype, shape"),
    ("shape and bytes differ", {"header": {"a": entry(shape=(3,))}, "data": bytes(8)}, "does not fill"),
    ("an overlap", {"header": {"a": entry(), "b": entry(offsets=(4, 12))}, "data": bytes(12)}, "overlaps"),
    ("a gap", {"header": {"a": entry(), "b": entry(offsets=(12, 20))}, "data": bytes(20)}, "leaves a gap"),
    ("data cut off", {"header": {"a": entry()}, "data": bytes(7)}, "truncated"),
    ("data beyond the last", {"header": {"a": entry()}, "data": bytes(9)}, "after its last tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "says"), [(made, says) for _, made, says in FAULTS], ids=[name for name, _, _ in FAULTS])
def test_a_damaged_file_is_refused_with_its_fault(tmp_path: Path, made: dict[str, Any], says: str) -> None:
    path = file_of(tmp_path, **made)
    with pytest.raises(InvalidRequest, match=says):
        read_header(path)


def test_a_file_of_seven_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"1234567")
    with pytest.raises(InvalidRequest, match="too few"):
        read_header(tmp_path / "x.safetensors")


def test_every_truncation_of_a_good_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidRequest):
            read_header(path)


dtypes = st.sampled_from(["F32", "F16", "BF16", "I8", "F4", "X"])
numbers = st.one_of(st.integers(-1, 20), st.sampled_from([1 << 62, 1 << 64, True, 1.0, None]))
entries = st.fixed_dictionaries({"dtype": dtypes, "shape": st.lists(numbers, max_size=3), "data_offsets": st.lists(numbers, max_size=3)})
headers = st.dictionaries(st.text(max_size=4), entries, max_size=3)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(raw=st.one_of(st.binary(max_size=200), st.tuples(headers, st.binary(max_size=40))))
def test_any_bytes_are_read_or_refused_and_what_is_read_safetensors_reads_too(tmp_path: Path, raw: Any) -> None:
    if isinstance(raw, bytes):
        path = tmp_path / "x.safetensors"
        path.write_bytes(raw)
    else:
        path = file_of(tmp_path, raw[0], raw[1])
    try:
        ours = read_header(path)
    except InvalidRequest:
        return
    try:
        with safe_open(path, "np") as theirs:
            assert set(theirs.keys()) == set(ours)
    except SafetensorError as error:
        raise AssertionError(f"we read what safetensors refuses: {error}") from error
