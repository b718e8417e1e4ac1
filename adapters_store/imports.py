"""Imports: an adapter's files from a bucket or from a hub, into a folder that is then judged and published as an upload's is.

    "s3://bucket/path" or "hf://owner/name[@revision]" ──▶ allowed? ──▶ list ──▶ choose, within the bounds ──▶ download

Only these two schemes, only buckets and owners that the settings name: a source is text from outside, read with our credentials from
inside our network. Of what lies there only the files of an adapter are taken, sizes known before a byte is fetched.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapters_store.adapter_files import CONFIG_FILE, WEIGHTS_FILE, is_adapter_file, listed_faults
from adapters_store.disk import check_room
from adapters_store.errors import (
    Conflict,
    InvalidAdapter,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    StoreUnavailable,
    TooLarge,
    Unavailable,
)
from adapters_store.hub import Hub
from adapters_store.objects import ObjectInfo, ObjectStore, open_store
from adapters_store.strict_json import quote
from configs.settings import ImportSettings, UploadSettings

LISTED = 1000  # objects or files that a source may have; the adapter's own are few

_S3 = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<path>[^?#%]{0,800}))?")
_HUB = re.compile(
    r"hf://(?P<owner>[A-Za-z0-9][A-Za-z0-9._-]{0,95})/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,95})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{0,120}))?"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class S3Source:
    bucket: str
    path: str  # without slashes at its ends; "" for the whole bucket

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.path}".rstrip("/")


@dataclass(frozen=True, slots=True)
class HubSource:
    owner: str
    name: str
    revision: str | None  # a branch, tag or commit; None for the main branch

    def __str__(self) -> str:
        return f"hf://{self.owner}/{self.name}" + (f"@{self.revision}" if self.revision else "")


def parse_source(text: str) -> S3Source | HubSource:
    """Raises InvalidRequest for anything but the two forms."""
    if (match := _S3.fullmatch(text)) and not {"", ".", ".."} & set((match["path"] or "x").strip("/").split("/")) and text.isprintable():
        return S3Source(match["bucket"], (match["path"] or "").strip("/"))
    if (match := _HUB.fullmatch(text)) and ".." not in text:
        return HubSource(match["owner"], match["name"], match["revision"])
    raise InvalidRequest(f"source is {quote(text)}: give s3://bucket/path or hf://owner/name[@revision]", param="source")


class Imports:
    """`store_url` is the platform's own store, from which nothing is imported: it holds every tenant's adapters."""

    def __init__(self, store_url: str, settings: ImportSettings, uploads: UploadSettings) -> None:
        self._store_url = store_url
        self._settings = settings
        self._uploads = uploads
        self._hub = Hub(settings, max_bytes=uploads.max_bytes)

    def fetch(self, source: str, into: Path) -> str:
        """Download the adapter at `source` into the empty folder `into`; the source as it was read, a hub's with its commit. Blocks.

        Raises:
            InvalidRequest: no source. PermissionDenied: one that may not be imported here. NotFound: nothing there.
            InvalidAdapter: something else than an adapter is there. TooLarge: more than an upload may be.
            Unavailable: the bucket or the hub does not answer.
        """
        parsed = parse_source(source)
        read = self._from_s3(parsed, into) if isinstance(parsed, S3Source) else self._from_hub(parsed, into)
        logger.info("imported", extra={"source": read})
        return read

    def _from_s3(self, source: S3Source, into: Path) -> str:
        self._check_bucket(source)
        try:
            self._copy_from(open_store(str(source)), source, into)
        except StoreUnavailable:  # its words are about our own store
            raise Unavailable(
                f"{source} cannot be read: check that the bucket exists, answers, and lets this platform's credentials list and read it, "
                "or `lorikeet adapters push` the files",
                param="source",
            ) from None
        return str(source)

    def _copy_from(self, store: ObjectStore, source: S3Source, into: Path) -> None:
        found = _direct(store)
        if not found:
            raise NotFound(f"there are no files at {source}: give the folder that holds {CONFIG_FILE}", param="source")
        for name in self._choose({name: info.size_bytes for name, info in found.items()}, str(source), into):
            store.download(name, into / name, found[name].size_bytes)
        if {name: info.etag for name, info in _direct(store).items()} != {name: info.etag for name, info in found.items()}:
            raise Conflict(f"{source} was written to while it was read: import it again when it is whole", param="source")

    def _from_hub(self, source: HubSource, into: Path) -> str:
        if not {"*", source.owner} & set(self._settings.hub_owners):
            raise PermissionDenied(
                f"repositories of {source.owner} may not be imported here: the operator has to name it in imports.hub_owners",
                param="source",
            )
        repository = f"{source.owner}/{source.name}"
        commit, sizes = self._hub.list(repository, source.revision)
        names = self._choose(sizes, str(source), into)
        self._hub.download(repository, commit, names, into)
        return f"hf://{repository}@{commit}"

    def _check_bucket(self, source: S3Source) -> None:
        allowed = any(_is_within(str(source), bucket) for bucket in self._settings.buckets)
        if not allowed or _is_within(str(source), self._store_url):
            raise PermissionDenied(
                f"{source} may not be imported here: the operator has to name it in imports.buckets, and it cannot be the store itself",
                param="source",
            )

    def _choose(self, sizes: Mapping[str, int], where: str, into: Path) -> list[str]:
        """The adapter's files among what lies at a source; others (checkpoints, optimizer states, folders) are passed over."""
        chosen = {name: size_bytes for name, size_bytes in sorted(sizes.items()) if is_adapter_file(name, size_bytes)}
        if CONFIG_FILE not in chosen and WEIGHTS_FILE not in chosen:
            raise InvalidAdapter([f"{where} holds no adapter: {CONFIG_FILE} and {WEIGHTS_FILE} are missing."], param="source")
        if faults := list(listed_faults(chosen)):
            raise InvalidAdapter(faults, param="source")
        size_bytes = sum(chosen.values())
        limits = self._uploads
        if len(chosen) > limits.max_files or size_bytes > limits.max_bytes:
            raise TooLarge(
                f"{where} has {len(chosen)} files of {size_bytes} bytes, at most {limits.max_files} of {limits.max_bytes} bytes are taken: "
                "import a smaller adapter, or raise uploads.max_bytes",
                param="source",
            )
        check_room(into, size_bytes)
        return list(chosen)


def _direct(store: ObjectStore) -> dict[str, ObjectInfo]:
    """The objects directly at a store's prefix, by name."""
    page = store.list("", delimiter="/", limit=LISTED)
    if page.next_token is not None:
        raise TooLarge(f"the source holds more than {LISTED} objects: give the adapter's own folder", param="source")
    return {info.key: info for info in page.objects}


def _is_within(url: str, folder: str) -> bool:
    return f"{url.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")
