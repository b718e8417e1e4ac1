"""What aliases.json said, and when: a store that writes down each change of one, and the line of states that comes of it.

Every process of a test appends to one file. A change is written down before it is sent and after it is answered, so of one whose
process was killed in between it is known that it may have happened; whether it did is seen by who read it afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_store.errors import Conflict
from adapters_store.layout import ALIASES_FILE
from adapters_store.objects import ObjectStore
from adapters_store.pointer_files import NO_ETAG
from adapters_store.pointers import Pointers, read_pointers

FOREVER = float("inf")


class Journal:
    """Lines of JSON. A line is one write of the kernel's, so processes do not mix theirs; what a killed one left torn is no line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, **fields: Any) -> None:
        os.write(self._file, b"\n" + json.dumps(fields).encode())

    def lines(self) -> Iterator[dict[str, Any]]:
        for line in self.path.read_bytes().split(b"\n"):
            try:
                yield json.loads(line)
            except ValueError:
                continue


class JournaledStore:
    """Passes calls on to a real store, and writes down what happens to the aliases."""

    def __init__(self, store: ObjectStore, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._seen: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get(self, key: str) -> tuple[bytes, str]:
        data, etag = self._store.get(key)
        if key.endswith(f"/{ALIASES_FILE}") and etag not in self._seen:
            self._seen.add(etag)
            self._journal.write(read=key, etag=etag, digest=_digest(data))
        return data, etag

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        if not key.endswith(f"/{ALIASES_FILE}"):
            return self._store.put(key, data, if_match=if_match, if_absent=if_absent)
        change = uuid.uuid4().hex
        data = json.dumps({**json.loads(data), "change": change}).encode()  # so that no state comes twice, and none is taken for another
        over = NO_ETAG if if_match is None else if_match
        self._journal.write(put=change, pid=os.getpid(), key=key, over=over, began=time.monotonic(), data=data.decode())
        try:
            etag = self._store.put(key, data, if_match=if_match, if_absent=if_absent)
        except Conflict:
            self._journal.write(lost=change)
            raise
        self._journal.write(done=change, etag=etag, ended=time.monotonic())
        return etag


@dataclass(frozen=True, slots=True)
class State:
    """What the aliases of an adapter were. It began to be between `since` and `known`, and was over for sure at `until`."""

    pointers: Pointers
    since: float
    until: float


@dataclass(slots=True)
class _Change:
    over: str
    began: float
    data: str
    pid: int
    etag: str | None = None
    ended: float = FOREVER


def states_of(lines: Sequence[Mapping[str, Any]], key: str, killed: Mapping[int, float]) -> list[State]:
    """Every state that `key` was in, in order; `killed` says when which process was dead. Fails when a change got lost."""
    changes = _changes(lines, key, killed)
    seen = {line["digest"]: line["etag"] for line in lines if line.get("read") == key}
    line: list[_Change] = []
    etag = NO_ETAG
    while True:
        over_this = [change for change in changes if change.over == etag]
        told = [change for change in over_this if change.etag is not None]
        assert len(told) <= 1, f"two changes of {key} were both made over {etag!r}: one of them is lost"
        # Of those that nobody was told of, one happened if somebody has read what it wrote.
        found = told or [change for change in over_this if _digest(change.data.encode()) in seen]
        if not found:
            break
        line.append(found[0])
        etag = found[0].etag or seen[_digest(found[0].data.encode())]
    lost = [change for change in changes if change.etag is not None and change not in line]
    assert not lost, f"{len(lost)} changes of {key} were told as done and are in no state of it"
    owner, name = key.split("/")[1:3]
    ends = [change.ended for change in line] + [FOREVER]
    states = [State(Pointers(), 0.0, ends[0])]
    for number, change in enumerate(line):
        states.append(State(read_pointers(change.data.encode(), owner, name), change.began, ends[number + 1]))
    return states


def _changes(lines: Sequence[Mapping[str, Any]], key: str, killed: Mapping[int, float]) -> list[_Change]:
    changes: dict[str, _Change] = {}
    for line in lines:
        if line.get("key") == key and "put" in line:
            changes[line["put"]] = _Change(line["over"], line["began"], line["data"], line["pid"], ended=killed.get(line["pid"], FOREVER))
        elif line.get("done") in changes:
            changes[line["done"]].etag, changes[line["done"]].ended = line["etag"], line["ended"]
        elif line.get("lost") in changes:
            del changes[line["lost"]]
    return list(changes.values())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
