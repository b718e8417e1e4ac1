"""The base models that adapters may be for, as their replicas described them in the store when they started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from adapters_store.base_model import BaseProfile, load_profile
from adapters_store.objects import ObjectStore
from adapters_store.validate import Fit, inspect

_FRESH_SECONDS = 30.0


class Bases:
    """Profiles of the served base models, read again every half minute. Calls block."""

    def __init__(self, store: ObjectStore, ids: Sequence[str] = ()) -> None:
        self._store = store
        self._ids = tuple(ids)
        self._profiles: tuple[BaseProfile, ...] = ()
        self._read_at = -_FRESH_SECONDS

    def serve(self, ids: Sequence[str]) -> None:
        """From now on these are the served ones."""
        self._ids, self._profiles, self._read_at = tuple(ids), (), -_FRESH_SECONDS

    def inspect(self, folder: Path) -> Fit:
        """Judge an adapter's folder against the served base models; raises InvalidAdapter, Unavailable, StoreUnavailable."""
        return inspect(folder, self.profiles())

    def profiles(self) -> tuple[BaseProfile, ...]:
        """Those that have been written: a model that never started has none."""
        now = time.monotonic()
        if now - self._read_at >= _FRESH_SECONDS or len(self._profiles) < len(self._ids):
            found = (load_profile(self._store, id) for id in self._ids)
            self._profiles = tuple(profile for profile in found if profile is not None)
            self._read_at = now
        return self._profiles
