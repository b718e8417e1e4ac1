"""A PEFT folder that somebody copied straight into the bucket becomes a version when its name is first asked for.

`registry.py` sees in its one listing that adapter_config.json and adapter_model.safetensors lie directly under the name, and that their
etags are not the ones in aliases.json. Then, here: download both, validate, publish as a version, point `production` at it, and remember
the etags, so that it happens again when somebody copies over them. Other files of the folder are left alone.

Somebody may be copying while we read, and several gateways may adopt at once: etags are compared again after the download and once more
under the conditional put, so what was published is what lay there whole.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapters_store.adapter import Adapter, version_of
from adapters_store.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from adapters_store.admission import Pending
from adapters_store.disk import check_room, disk_full, is_disk_full
from adapters_store.errors import InvalidAdapter, NotFound, TooLarge
from adapters_store.history import ADOPT, Actor
from adapters_store.layout import adapter_prefix
from adapters_store.names import PRODUCTION
from adapters_store.objects import ObjectInfo, ObjectStore
from adapters_store.pointers import Pointers
from adapters_store.publishing import Publishing
from adapters_store.recent import Recent
from adapters_store.versions import hash_files

if TYPE_CHECKING:
    from adapters_store.validate import Fit

ADOPTED_BY = "adopted"
COPIED_FILES = (CONFIG_FILE, WEIGHTS_FILE)
REFUSALS_KEPT = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AdoptionRules:
    """`inspect` judges a downloaded folder (raises InvalidAdapter), `max_bytes` bounds it, `scratch` is where it is kept meanwhile, made
    when it is not there."""

    inspect: Callable[[Path], Fit]
    max_bytes: int = 2 << 30
    scratch: Path | None = None  # None: the system's temporary folder


def copied_etags(direct: Sequence[ObjectInfo]) -> dict[str, str]:
    """Etags of an adapter's copied files among the objects directly under its name."""
    found = {info.key.rpartition("/")[2]: info.etag for info in direct}
    return {file: found[file] for file in COPIED_FILES if file in found}


class Adoption:
    def __init__(self, store: ObjectStore, publishing: Publishing, rules: AdoptionRules) -> None:
        self._store = store
        self._publishing = publishing
        self._rules = rules
        self._refusals: Recent[tuple[str, str, tuple[str, ...]], tuple[str, ...]] = Recent(REFUSALS_KEPT)

    def adopt(self, owner: str, name: str, direct: Sequence[ObjectInfo]) -> bool:
        """Publish what was copied; False when it changed meanwhile, so that the caller looks again.

        Raises:
            InvalidAdapter: no base model here can serve it. It is remembered, and not downloaded again until it changes.
            Unavailable: this machine's disk is too full. Conflict: the same content is published for another base model.
        """
        etags = copied_etags(direct)
        folder_id = (owner, name, tuple(etags[file] for file in COPIED_FILES))
        if (reasons := self._refusals.get(folder_id)) is not None:
            raise InvalidAdapter(reasons, param="model")
        try:
            if self._rules.scratch is not None:
                self._rules.scratch.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix="adopt-", dir=self._rules.scratch) as folder:
                return self._adopt_through(Path(folder), owner, name, direct)
        except (InvalidAdapter, TooLarge) as error:
            reasons = error.reasons if isinstance(error, InvalidAdapter) else (error.message,)
            self._refusals.put(folder_id, reasons)
            logger.warning("adoption_refused", extra={"adapter": f"{owner}/{name}", "reasons": reasons})
            raise InvalidAdapter(reasons, param="model") from None
        except OSError as error:
            if is_disk_full(error):
                raise disk_full() from None
            raise

    def _adopt_through(self, folder: Path, owner: str, name: str, direct: Sequence[ObjectInfo]) -> bool:
        etags = copied_etags(direct)
        copied = [info for info in direct if info.key.rpartition("/")[2] in COPIED_FILES]
        size_bytes = sum(info.size_bytes for info in copied)
        if size_bytes > self._rules.max_bytes:
            raise TooLarge(f"the copied adapter {owner}/{name} has {size_bytes} bytes, at most {self._rules.max_bytes} are taken.")
        check_room(folder, size_bytes)
        try:
            for info in copied:
                self._store.download(info.key, folder / info.key.rpartition("/")[2], info.size_bytes)
        except NotFound:
            return False
        if self._etags_now(owner, name) != etags:
            return False
        fit = self._rules.inspect(folder)
        files = hash_files(folder)
        wanted = Adapter(owner, name, version_of(files), fit.base, fit.rank, files, time.time(), ADOPTED_BY)

        def point(before: Pointers, adapter: Adapter, *, hold: bool) -> Pointers:
            if before.adopted == etags:
                return before  # another gateway was quicker
            if self._etags_now(owner, name) != etags:
                raise _CopiedOver
            # The same content under new etags (the bucket was moved, or synced again): no reason to undo a rollback.
            same = adapter.version == before.adopted_version
            by = Actor(ADOPTED_BY)
            if hold:
                pointed = before.holding(adapter.version, Pending(PRODUCTION, by, ADOPT, time.time()))
            else:
                pointed = before if same else before.pointing(PRODUCTION, adapter.version, by=by, why=ADOPT)
            return replace(pointed, adopted=dict(etags), adopted_version=adapter.version)

        try:
            adapter, _ = self._publishing.publish(folder, wanted, point)
        except _CopiedOver:
            return False
        logger.info("adopted", extra={"adapter": adapter.exact_name})
        return True

    def _etags_now(self, owner: str, name: str) -> dict[str, str]:
        return copied_etags(self._store.list(adapter_prefix(owner, name), delimiter="/").objects)


class _CopiedOver(Exception):
    """The copied files changed before the pointers were written."""
