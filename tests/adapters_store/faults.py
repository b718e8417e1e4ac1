"""A store that can be made slow or unreachable, and that counts: for tests of what stands over it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapters_store.errors import StoreUnavailable
from adapters_store.objects import ObjectStore


class FaultyStore:
    """Passes calls on to a real store. `down` makes each fail, and `gate` holds each until it is set.

    `on_download` sees what was fetched, `on_put` what is about to be put.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.down = False
        self.gate = threading.Event()
        self.gate.set()
        self.calls: Counter[str] = Counter()
        self.downloads: Counter[str] = Counter()
        self.on_download: Callable[[str, Path], None] = lambda key, path: None
        self.on_put: Callable[[str, bytes], None] = lambda key, data: None
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        def passed_on(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.calls[name] += 1
            assert self.gate.wait(timeout=20)
            if self.down:
                raise StoreUnavailable("the object store did not answer (test)")
            return call(*args, **kwargs)

        return passed_on

    def download(self, key: str, path: Path, size_bytes: int | None = None) -> None:
        with self._lock:
            self.downloads[key] += 1
        self.__getattr__("download")(key, path, size_bytes)
        self.on_download(key, path)

    def put(self, key: str, data: bytes, **conditions: Any) -> str:
        self.on_put(key, data)
        return self.__getattr__("put")(key, data, **conditions)
