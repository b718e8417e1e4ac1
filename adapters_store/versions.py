"""The versions of an adapter in the store: immutable once their manifest is written. `registry.py` decides which one a name means."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from adapters_store.adapter import Adapter, AdapterFile
from adapters_store.adapter_files import check_file_name
from adapters_store.errors import Conflict, InvalidName, InvalidRequest, NotFound
from adapters_store.layout import file_key, manifest_key, versions_prefix
from adapters_store.manifest import read_manifest, write_manifest
from adapters_store.names import VERSION_DIGITS
from adapters_store.objects import ObjectStore
from adapters_store.paging import folders_under
from adapters_store.recent import Recent

MANIFESTS_KEPT = 10_000
MANIFEST_FRESH_SECONDS = 3600.0  # a manifest never changes, but it may be removed (see garbage.py)
LOOKED_AT = 32  # version folders that a prefix may match before it is called ambiguous unread

_HASH_BYTES = 1 << 20


class Versions:
    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: Recent[tuple[str, str, str], tuple[Adapter, float]] = Recent(MANIFESTS_KEPT)

    def get(self, owner: str, name: str, version: str) -> Adapter | None:
        """One version by its whole digest, or None. A manifest never changes, so it is read once an hour."""
        known = self._known.get((owner, name, version))
        if known is not None and time.monotonic() - known[1] < MANIFEST_FRESH_SECONDS:
            return known[0]
        return self.get_now(owner, name, version)

    def get_now(self, owner: str, name: str, version: str) -> Adapter | None:
        """The same, as the store has it now: garbage may have been collected since it was read."""
        try:
            data, _ = self._store.get(manifest_key(owner, name, version))
        except NotFound:
            return None
        return self._remember(read_manifest(data, owner, name, version))

    def note(self, adapter: Adapter) -> None:
        """What this version's manifest says, as `PointerFiles` knows: of one that is served, so it is there unchanged."""
        self._remember(adapter)

    def find(self, owner: str, name: str, version: str) -> Adapter:
        """One version by its digest or a unique prefix of it. Raises NotFound, or InvalidName when the prefix means several."""
        return self._find(owner, name, version, self.get)

    def find_now(self, owner: str, name: str, version: str) -> Adapter:
        """The same, as the store has it now, for who is about to point at it: its files may have been collected since they were read,
        and somebody may be putting them again, who may yet fail.
        """
        return self._find(owner, name, version, self.get_now)

    def _find(self, owner: str, name: str, version: str, get: Callable[[str, str, str], Adapter | None]) -> Adapter:
        exact = f"{owner}/{name}@{version}"
        ambiguous = InvalidName(f"{exact} means more than one version: give more digits", param="model")
        if len(version) == VERSION_DIGITS:
            found = [get(owner, name, version)]
        else:
            page = self._store.list(versions_prefix(owner, name) + version, delimiter="/", limit=LOOKED_AT)
            if page.next_token is not None:
                raise ambiguous
            # A folder without a manifest is an upload that has not ended, or never will: no version.
            found = [get(owner, name, folder.rstrip("/").rpartition("/")[2]) for folder in page.folders]
        adapters = [adapter for adapter in found if adapter is not None]
        if len(adapters) > 1:
            raise ambiguous
        if not adapters:
            raise NotFound(f"adapter version {exact} does not exist: GET /api/v1/adapters/{owner}/{name} lists its versions", param="model")
        return adapters[0]

    def all(self, owner: str, name: str) -> Iterator[Adapter]:
        """Every version, in the order of digests: a listing, and one read for each that was not read before."""
        for version in folders_under(self._store, versions_prefix(owner, name)):
            if (adapter := self.get(owner, name, version)) is not None:
                yield adapter

    def upload(self, folder: Path, wanted: Adapter) -> tuple[Adapter, bool]:
        """Put the files of `folder` into the store as `wanted`, and its manifest last; the stored version, and whether it is new.

        Two that upload the same content at once write the same bytes, and one manifest wins.
        """
        for file in wanted.files:
            self._store.upload(file_key(wanted.owner, wanted.name, wanted.version, file.name), folder / file.name)
        stored, created = wanted, True
        try:
            self._store.put(manifest_key(wanted.owner, wanted.name, wanted.version), write_manifest(wanted), if_absent=True)
        except Conflict:
            stored, created = self._manifest_of(wanted), False
        return self._remember(stored), created

    def _remember(self, adapter: Adapter) -> Adapter:
        self._known.put((adapter.owner, adapter.name, adapter.version), (adapter, time.monotonic()))
        return adapter

    def _manifest_of(self, wanted: Adapter) -> Adapter:
        stored = self.get_now(wanted.owner, wanted.name, wanted.version)
        if stored is None:
            raise Conflict(f"{wanted.exact_name} was removed while it was published: publish it again")
        return stored


def hash_files(folder: Path) -> tuple[AdapterFile, ...]:
    """Name, size and sha256 of every file of an adapter's folder, by name. Raises InvalidRequest for what no adapter may hold."""
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    if not entries:
        raise InvalidRequest("the adapter has no files: upload the folder that PEFT's save_pretrained wrote", param="files")
    for entry in entries:
        check_file_name(entry.name)  # keeps manifest.json for us
        if entry.is_symlink() or not entry.is_file():
            raise InvalidRequest(f"{entry.name!r} is not a regular file: upload plain files alone", param="files")
    return tuple(hash_file(entry) for entry in entries)


def hash_file(path: Path) -> AdapterFile:
    """One file's name, size and sha256, read in bounded memory."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return AdapterFile(path.name, size_bytes, digest.hexdigest())
