"""Walk a folder in the order in which S3 lists keys: `local.py` pages its listings with it.

Keys are ordered as text, '/' included, so a folder sorts as its name with '/' behind it: `a-b/x` comes before `a/x`. The walk is lazy:
it reads only the folders that the page touches, which keeps a first page quick over 100,000 adapters.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterator
from pathlib import Path


def list_folder(root: Path, prefix: str, *, folders: bool, start_after: str, hidden: str) -> Iterator[str]:
    """Yield the keys that start with `prefix` and come after `start_after`, in order.

    With `folders`, what lies deeper than one level below `prefix` is yielded as its folder, ending in '/', once. `hidden` is a name at
    the root that is left out.
    """
    base = prefix.rpartition("/")[0]
    segments = base.split("/") if base else []
    if hidden in segments[:1] or any(segment in ("", ".", "..") or "\0" in segment for segment in segments):
        return  # no key lies there
    for key in _walk(root, f"{base}/" if base else "", prefix, start_after):
        if key.endswith("/"):
            if key == f"{hidden}/":
                continue
            if not folders:
                yield from _walk_down(root, key, start_after)
            elif key > start_after and _holds_an_object(root / key):
                yield key
        elif key > start_after:
            yield key


def _walk_down(root: Path, folder_key: str, start_after: str) -> Iterator[str]:
    for key in _walk(root, folder_key, folder_key, start_after):
        if key.endswith("/"):
            yield from _walk_down(root, key, start_after)
        elif key > start_after:
            yield key


def _walk(root: Path, folder_key: str, prefix: str, start_after: str) -> Iterator[str]:
    """One folder's entries as full keys, folders with '/' behind, in order; those that lie before `start_after` are left out."""
    name_prefix = prefix[len(folder_key) :]
    # What is left of `start_after` inside this folder; outside of it, the folder is listed whole (or not at all, see below).
    inside = start_after.startswith(folder_key)
    if not inside and start_after > folder_key:
        return
    after = start_after[len(folder_key) :] if inside else ""
    folder = root / folder_key
    names = [name for name in _names(folder) if _may_come(name, name_prefix, after)] if name_prefix or after else _names(folder)
    heapq.heapify(names)  # a page takes few of them: cheaper than sorting all
    while names:
        name = heapq.heappop(names)
        if not name.endswith("/") and _is_folder(folder / name):
            # Looked up only now: of a hundred thousand names a page takes a hundred. A folder sorts with its "/" behind it.
            heapq.heappush(names, f"{name}/")
        elif name.startswith(name_prefix) and (name > after or after.startswith(name)) and _is_text(name):
            yield folder_key + name


def _may_come(name: str, name_prefix: str, after: str) -> bool:
    """Whether `name`, a file's or a folder's without its "/", may be among what is listed."""
    return f"{name}/".startswith(name_prefix) and (f"{name}/" > after or after.startswith(name))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - half the time of iterdir
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False  # deleted since, or not ours to look at


def _is_text(name: str) -> bool:
    """False for a stray file whose name is not UTF-8: it cannot be a key."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _holds_an_object(folder: Path) -> bool:
    """Whether any file lies under `folder`: empty folders are no keys."""
    return any(not _is_folder(folder / name) or _holds_an_object(folder / name) for name in _names(folder))
