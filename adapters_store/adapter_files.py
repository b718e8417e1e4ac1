"""Which files an adapter may be made of: their names, kinds and sizes.

Asked first of all, while an upload streams in (`archive.py`, multipart parts) and of the finished folder (`validate.py`). A version's files
lie beside its manifest in the store and are read by an engine, so the list is of what is known to be harmless.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from adapters_store.errors import InvalidRequest
from adapters_store.strict_json import quote

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAX_EXTRA_FILE_BYTES = 64 << 20  # the largest tokenizer.json in use is about half of this
MAX_FILES = 256  # a folder that bypassed the upload's own limit

RESERVED_NAMES = frozenset({"manifest.json", "aliases.json"})  # the store's own objects beside a version's files
_NAME = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._-]{0,126}")

_HARMLESS_SUFFIXES = (".md", ".txt", ".json", ".jsonl", ".jinja", ".yaml", ".yml", ".rst", ".csv", ".png", ".jpg", ".jpeg")
_HARMLESS_NAMES = frozenset({"license", "notice", "tokenizer.model", "spiece.model", ".gitattributes", ".gitignore"})
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")


def check_file_name(name: str) -> str:
    """`name` if a file of an adapter may be called that: one plain segment. Raises InvalidRequest otherwise."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"file name {quote(name)} is not allowed: use up to 128 letters, digits, '.', '_' or '-', without folders.", param="files"
        )
    if name.casefold() in RESERVED_NAMES:
        raise InvalidRequest(f"file name {quote(name)} is kept for the store: leave the file out or rename it.", param="files")
    return name


def file_faults(folder: Path) -> Iterator[str]:
    """Every reason why the folder's files are not an adapter's. Looks at names, kinds and sizes, not into the files."""
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    names = {entry.name for entry in entries}
    if len(entries) > MAX_FILES:
        yield f"there are {len(entries)} files, at most {MAX_FILES} are allowed: upload the adapter alone."
        return
    if CONFIG_FILE not in names:
        yield f"{CONFIG_FILE} is missing: upload the folder that PEFT's save_pretrained wrote."
    if WEIGHTS_FILE not in names:
        yield f"{WEIGHTS_FILE} is missing: save the adapter with safe_serialization=True and upload it."
    for entry in entries:
        yield from _entry_faults(entry)


def listed_faults(files: Mapping[str, int]) -> Iterator[str]:
    """Every reason why files of these names and sizes (in bytes) are not an adapter's: asked before the files themselves are there."""
    if CONFIG_FILE not in files:
        yield f"{CONFIG_FILE} is missing: upload the folder that PEFT's save_pretrained wrote."
    if WEIGHTS_FILE not in files:
        yield f"{WEIGHTS_FILE} is missing: save the adapter with safe_serialization=True and upload it."
    for name, size_bytes in files.items():
        if name in (CONFIG_FILE, WEIGHTS_FILE):
            if size_bytes == 0:
                yield f"{name} is empty: save the adapter and upload it again."
        else:
            yield from _extra_file_faults(name.casefold(), name, size_bytes)


def is_adapter_file(name: str, size_bytes: int) -> bool:
    """Whether a file of this name and size may be part of an adapter: for choosing from a folder that holds other things too."""
    try:
        check_file_name(name)
    except InvalidRequest:
        return False
    return name in (CONFIG_FILE, WEIGHTS_FILE) or not any(_extra_file_faults(name.casefold(), name, size_bytes))


def _entry_faults(entry: Path) -> Iterator[str]:
    name, status = entry.name, entry.lstat()
    try:
        check_file_name(name)
    except InvalidRequest as error:
        yield error.message
        return
    if not stat.S_ISREG(status.st_mode):
        yield f"{quote(name)} is not a regular file: upload plain files alone, without folders or links."
    elif name not in (CONFIG_FILE, WEIGHTS_FILE):
        yield from _extra_file_faults(name.casefold(), name, status.st_size)
    elif status.st_size == 0:
        yield f"{name} is empty: save the adapter and upload it again."


def _extra_file_faults(folded: str, name: str, size_bytes: int) -> Iterator[str]:
    if folded.endswith(_PICKLE_SUFFIXES):
        yield (
            f"{quote(name)} may hold a pickle, which runs code when it is read: save the adapter with safe_serialization=True, and leave "
            "the trainer's own files out."
        )
    elif folded.endswith(".safetensors"):
        yield f"{quote(name)} would be ignored: an adapter's weights are one file, {WEIGHTS_FILE}."
    elif not folded.endswith(_HARMLESS_SUFFIXES) and folded not in _HARMLESS_NAMES:
        yield f"{quote(name)} is not a file that an adapter needs: leave it out."
    elif size_bytes > MAX_EXTRA_FILE_BYTES:
        yield f"{quote(name)} has {size_bytes} bytes, at most {MAX_EXTRA_FILE_BYTES} are allowed beside the weights: leave it out."
