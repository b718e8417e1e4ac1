"""Every kind of damage to the bytes of adapter_model.safetensors and to the folder around it, and how the refusal says so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.adapters_store.damage import (
    CONFIG,
    LENGTH_BYTES,
    WEIGHTS,
    Damage,
    Header,
    file_as,
    header_text,
    header_with,
    with_file,
    without_file,
)

QA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
KA = "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"
HIDDEN, RANK = 576, 4

_AGAIN, _RESAVE = "save and upload it again", "save it again with safetensors"
_EXACT = "must have exactly dtype, shape and data_offsets"
_PLAIN_FILES = "upload plain files alone, without folders or links"


def offsets(change: Callable[[list[int]], list[int]], name: str = QA) -> Damage:
    return header_with(lambda header: header[name].update(data_offsets=change(header[name]["data_offsets"])))


def entry(**fields: object) -> Damage:
    return header_with(lambda header: header[QA].update(fields))


def gap(header: Header) -> None:
    """One tensor forgotten by the header, its bytes still there."""
    del header[KA]


def twice(text: str) -> str:
    """The first A in the header a second time under the same name."""
    return text.rstrip()[:-1] + f", {json.dumps(QA)}: {json.dumps(json.loads(text)[QA])}}}"


def announced(length: int) -> Damage:
    """Another length of the header than it has."""
    return file_as(WEIGHTS, lambda data: length.to_bytes(LENGTH_BYTES, "little") + data[LENGTH_BYTES:])


def linked(name: str) -> Damage:
    """The file moved out of the folder, and a link to it left."""

    def damage(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return damage


def pipe(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


UNFIT_BYTES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "cut in the tensors": (file_as(WEIGHTS, lambda data: data[:-1]), (f"{WEIGHTS} is truncated: its tensors end at", "Upload it whole")),
    "cut in the header": (file_as(WEIGHTS, lambda data: data[:99]), (f"{WEIGHTS} is truncated: its header needs", "Upload it whole")),
    "cut in the length": (file_as(WEIGHTS, lambda data: data[:7]), (f"{WEIGHTS} has 7 bytes, too few", _AGAIN)),
    "bytes after the end": (file_as(WEIGHTS, lambda data: data + b"\0"), (f"{WEIGHTS} has 1 bytes after its last tensor", _AGAIN)),
    "empty": (file_as(WEIGHTS, lambda data: b""), (f"{WEIGHTS} is empty", "save the adapter and upload it again")),
    "a zip, as torch saves": (file_as(WEIGHTS, lambda data: b"PK\x03\x04" * 20), ("it is not a safetensors file", _AGAIN)),
    "a pointer of Git LFS": (
        file_as(WEIGHTS, lambda data: b"version https://git-lfs.github.com/spec/v1\n"), ("it is not a safetensors file", _AGAIN),
    ),
    "a header announced too short": (announced(100), (f"the header of {WEIGHTS} is not valid JSON", _AGAIN)),
    "a header announced too long": (announced(1 << 20), (f"{WEIGHTS} is truncated: its header needs 1048576 bytes", "Upload it whole")),
    "a header of no bytes": (announced(0), (f"the header of {WEIGHTS} is not valid JSON", _AGAIN)),
    "a header announced endless": (announced((1 << 64) - 1), ("announces a header of 18446744073709551615 bytes", _AGAIN)),
    "a header too large": (
        header_text(lambda text: text.rstrip() + " " * (16 << 20)), ("announces a header of", "more than the 16777216 allowed", _AGAIN),
    ),
    "a header that is a list": (header_text(lambda text: f"[{text}]"), (f"the header of {WEIGHTS} is not a JSON object", _AGAIN)),
    "a header nested deeply": (header_text(lambda text: '{"a":' * 50_000), ("nested too deeply", _AGAIN)),
    "one name twice": (header_text(twice), (f"the key {QA!r} stands twice", _AGAIN)),
    "metadata that is no text": (header_with(lambda header: header.update(__metadata__={"a": 1})), ("__metadata__", "a map of strings")),
    "half a character in the metadata": (
        header_with(lambda header: header.update(__metadata__={"a": "\ud83d"})), (f"the header of {WEIGHTS} is not UTF-8", _AGAIN),
    ),
    "half a character in a name": (
        header_with(lambda header: header.update({"\udc00": header.pop(QA)})), (f"the header of {WEIGHTS} is not UTF-8", _AGAIN),
    ),
    "a shape larger than its bytes": (entry(shape=[RANK, HIDDEN + 1]), ("does not fill its 4608 bytes exactly", "the file is damaged")),
    "a tensor over another": (
        header_with(lambda header: header[QA].update(data_offsets=header[KA]["data_offsets"])),
        ("overlaps another", "the file is damaged", _AGAIN),
    ),
    "a gap between tensors": (header_with(gap), ("leaves a gap before it", "the file is damaged", _AGAIN)),
    "negative offsets": (offsets(lambda at: [at[0] - at[1], 0]), (f"{QA!r} has data_offsets that are not a range of bytes", _RESAVE)),
    "offsets reversed": (offsets(lambda at: at[::-1]), (f"{QA!r} has data_offsets that are not a range of bytes",)),
    "offsets beyond the file": (offsets(lambda at: [at[0] + (1 << 40), at[1] + (1 << 40)]), ("leaves a gap before it", _AGAIN)),
    "an offset of minus zero": (
        header_text(lambda text: text.replace('"data_offsets":[0,', '"data_offsets":[-0,')), ("-0 is not a whole number", _AGAIN),
    ),
    "one offset": (offsets(lambda at: at[:1]), ("data_offsets that are not a range of bytes", _RESAVE)),
    "a shape with a fraction": (entry(shape=[4.0, HIDDEN]), (f"{QA!r} has a shape that is not a list of whole numbers", _RESAVE)),
    "a negative shape": (entry(shape=[-RANK, -HIDDEN]), (f"{QA!r} has a shape that is not a list of whole numbers",)),
    "a dtype nobody knows": (entry(dtype="F7"), (f"{QA!r} has the dtype 'F7', which is not known", "save it as F32, F16 or BF16")),
    "another dtype than the bytes'": (entry(dtype="F32"), ("does not fill its 4608 bytes exactly", "the file is damaged")),
    "a field too many": (entry(extra=1), (f"{QA!r} {_EXACT}", _RESAVE)),
    "a field too few": (header_with(lambda header: header[QA].pop("dtype")), (f"{QA!r} {_EXACT}",)),
}  # fmt: skip

UNFIT_FILES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no config": (without_file(CONFIG), (f"{CONFIG} is missing", "upload the folder that PEFT's save_pretrained wrote")),
    "no weights": (without_file(WEIGHTS), (f"{WEIGHTS} is missing", "safe_serialization=True")),
    "weights in a .bin": (
        lambda folder: folder.joinpath(WEIGHTS).rename(folder / "adapter_model.bin") and None,
        (f"{WEIGHTS} is missing", "'adapter_model.bin' may hold a pickle", "safe_serialization=True"),
    ),
    "a .bin beside them": (with_file("adapter_model.bin"), ("'adapter_model.bin' may hold a pickle", "safe_serialization=True")),
    "an optimizer": (with_file("optimizer.pt"), ("'optimizer.pt' may hold a pickle", "leave the trainer's own files out")),
    "a trainer's arguments": (with_file("training_args.bin"), ("'training_args.bin' may hold a pickle",)),
    "a state of random numbers": (with_file("rng_state.pth"), ("'rng_state.pth' may hold a pickle",)),
    "a pickle": (with_file("x.PKL"), ("'x.PKL' may hold a pickle",)),
    "other safetensors": (with_file("model.safetensors"), ("'model.safetensors' would be ignored", f"are one file, {WEIGHTS}")),
    "weights in shards": (with_file("adapter_model-00001-of-00002.safetensors"), ("would be ignored", f"are one file, {WEIGHTS}")),
    "a script": (with_file("run.py"), ("'run.py' is not a file that an adapter needs", "leave it out")),
    "a library": (with_file("lib.so"), ("'lib.so' is not a file that an adapter needs", "leave it out")),
    "a GGUF": (with_file("model.gguf"), ("'model.gguf' is not a file that an adapter needs",)),
    "a name without an ending": (with_file("noextension"), ("'noextension' is not a file that an adapter needs",)),
    "a name that is none": (with_file("a b.json"), ("file name 'a b.json' is not allowed", "without folders")),
    "the store's own name": (with_file("manifest.json"), ("'manifest.json' is kept for the store", "leave the file out or rename it")),
    "a great file": (
        lambda folder: os.truncate(folder.joinpath("README.md"), 65 << 20), (f"'README.md' has {65 << 20} bytes", "leave it out"),
    ),
    "too many files": (
        lambda folder: [with_file(f"{n}.json")(folder) for n in range(257)] and None, ("at most 256 are allowed", "the adapter alone"),
    ),
    "a folder": (lambda folder: folder.joinpath("checkpoint-1").mkdir(), ("'checkpoint-1' is not a regular file", _PLAIN_FILES)),
    "a link beside them": (lambda folder: folder.joinpath("x.json").symlink_to("/etc/passwd"), ("'x.json' is not a regular file",)),
    "weights by a link": (linked(WEIGHTS), (f"'{WEIGHTS}' is not a regular file", _PLAIN_FILES)),
    "a config by a link": (linked(CONFIG), (f"'{CONFIG}' is not a regular file", _PLAIN_FILES)),
    "a config that is a pipe": (pipe, (f"'{CONFIG}' is not a regular file", _PLAIN_FILES)),
    "an empty config": (file_as(CONFIG, lambda data: b""), (f"{CONFIG} is empty", "save the adapter and upload it again")),
    "a config that is cut": (file_as(CONFIG, lambda data: data[:-3]), (f"{CONFIG} is not valid JSON", _AGAIN)),
    "a config that is a list": (file_as(CONFIG, lambda data: b"[]"), (f"{CONFIG} is not a JSON object", _AGAIN)),
    "a config of other bytes": (file_as(CONFIG, lambda data: b"\xff{}"), (f"{CONFIG} is not UTF-8", _AGAIN)),
    "a config with a field twice": (file_as(CONFIG, lambda data: b'{"r": 4, "r": 8}'), ("the key 'r' stands twice", _AGAIN)),
    "a config nested deeply": (file_as(CONFIG, lambda data: b'{"a":' * 50_000), ("nested too deeply", _AGAIN)),
    "a config of a number without end": (file_as(CONFIG, lambda data: b'{"r": ' + b"9" * 5000 + b"}"), ("is not valid JSON", _AGAIN)),
    "a config of 2 MiB": (file_as(CONFIG, lambda data: data + b" " * (2 << 20)), ("larger than 1048576 bytes", "the one that PEFT wrote")),
}  # fmt: skip
