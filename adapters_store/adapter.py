"""An adapter version: immutable, named by the sha256 over its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """One file of a version. `name` is a plain file name (no folders); `sha256` is lower-case hex."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Adapter:
    """One published version: what a request runs on, and all that a replica needs to pull and load it.

    Crosses from gateway to replica with each request, so it stays small.
    """

    owner: str
    name: str
    version: str  # 64 hex digits, version_of(files)
    base: str  # id of the base model that serves it
    rank: int
    files: tuple[AdapterFile, ...]
    created_at: float  # seconds since the epoch
    created_by: str  # id of the key that uploaded it, never the key

    @property
    def adapter_name(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def exact_name(self) -> str:
        """`owner/name@version`: the name inside the engine, in x-lorikeet-version and in system_fingerprint."""
        return f"{self.owner}/{self.name}@{self.version}"

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def version_of(files: Iterable[AdapterFile]) -> str:
    """The content address of a set of files: sha256 over their sorted (name, size, sha256), in hex."""
    rows = sorted([file.name, file.size_bytes, file.sha256] for file in files)
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
