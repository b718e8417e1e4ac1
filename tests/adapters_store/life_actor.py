"""Somebody who does random things to adapters, as a team's scripts and an operator's would: in a thread, or in a process to be killed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from multiprocessing.synchronize import Event
from pathlib import Path

from adapters_store.adapter import version_of
from adapters_store.canary import Guard
from adapters_store.errors import Conflict, NotFound, StoreUnavailable, Unavailable
from adapters_store.garbage import GarbageRules
from adapters_store.history import Actor
from adapters_store.labels import LabelChange
from adapters_store.objects import ObjectStore, open_store
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from adapters_store.versions import hash_files
from tests.adapters_store.life_journal import Journal, JournaledStore

OWNER = "acme"
NAMES = ("first", "second", "third")
ALIASES = ("production", "staging")
CONTENTS = 8  # few, so that the same one is published, retired, collected and published again
GRACE_SECONDS = 0.3
STORE_SECONDS = 120.0  # one process serves all of S3 here, and is slow while the machine does other things too
NEW = CONTENTS  # one that no actor publishes
FILE = "adapter_model.safetensors"


def content(number: int) -> bytes:
    return b"weights %d " % number * 100


def make_folders(root: Path) -> dict[str, int]:
    """A folder for each content; which version each of them is."""
    versions = {}
    for number in (*range(CONTENTS), NEW):
        folder = root / str(number)
        folder.mkdir(parents=True)
        (folder / FILE).write_bytes(content(number))
        (folder / "adapter_config.json").write_bytes(b"{}")
        versions[version_of(hash_files(folder))] = number
    return versions


class LifeActor:
    """`step` does one thing. What is refused is refused for a reason: it is no fault."""

    def __init__(self, store: ObjectStore, folders: Path, versions: Mapping[str, int], seed: int) -> None:
        self._registry = Registry(store)
        self._folders = folders
        self._versions = tuple(versions)
        self._random = random.Random(seed)
        self._by = Actor(f"key{seed}", f"actor {seed}", OWNER)
        canaries, aliases, retirement = self._registry.canaries, self._registry.aliases, self._registry.retirement
        by = self._by
        self._deeds: Mapping[Callable[[str, str, str], object], int] = {
            self._publish: 6,
            lambda name, alias, version: aliases.move(OWNER, name, alias, version, by=by): 4,
            lambda name, alias, version: aliases.roll_back(OWNER, name, alias, by=by): 2,
            lambda name, alias, version: aliases.delete(OWNER, name, alias, by=by): 1,
            self._canary: 12,
            lambda name, alias, version: canaries.promote(OWNER, name, alias, by=by): 2,
            lambda name, alias, version: canaries.abort(OWNER, name, alias, by=by): 1,
            self._trip: 1,
            lambda name, alias, version: canaries.shadow(OWNER, name, alias, version, share=50, by=by): 1,
            lambda name, alias, version: canaries.unshadow(OWNER, name, alias, by=by): 1,
            lambda name, alias, version: retirement.retire_version(OWNER, name, version): 4,
            lambda name, alias, version: retirement.undelete_version(OWNER, name, version): 2,
            lambda name, alias, version: retirement.retire(OWNER, name, by=by): 1,
            lambda name, alias, version: retirement.undelete(OWNER, name, by=by): 1,
            lambda name, alias, version: self._registry.label(OWNER, name, LabelChange({"step": version[:8]})): 1,
            lambda name, alias, version: self.collect(unfinished_seconds=60.0): 1,
        }

    def begin(self) -> None:
        """Leave each adapter with a version that production serves and a canary beside it, so that no life is without one."""
        for name in NAMES:
            served, tried = self._random.sample(range(CONTENTS), 2)
            for number, alias in ((served, ALIASES[0]), (tried, None)):
                found = self._registry.publish(self._folders / str(number), OWNER, name, Fit("base", 4), created_by=self._by, alias=alias)
            self._registry.canaries.start(OWNER, name, ALIASES[0], found.adapter.version, weight=50, guard=Guard(), by=self._by)

    def step(self) -> None:
        [deed] = self._random.choices(list(self._deeds), list(self._deeds.values()))
        name, alias, version = (self._random.choice(things) for things in (NAMES, ALIASES, self._versions))
        try:
            deed(name, alias, version)
        except StoreUnavailable:
            raise
        except (Conflict, NotFound, Unavailable):
            pass

    def collect(self, *, unfinished_seconds: float) -> None:
        for _ in self._registry.garbage.collect(GarbageRules(GRACE_SECONDS, unfinished_seconds), remove=True):
            pass

    def _publish(self, name: str, alias: str, version: str) -> None:
        folder = self._folders / str(self._random.randrange(CONTENTS))
        pointed = self._random.choice([alias, alias, None])
        self._registry.publish(folder, OWNER, name, Fit("base", 4), created_by=self._by, alias=pointed)

    def _canary(self, name: str, alias: str, version: str) -> None:
        weight = self._random.choice([0, 10, 50, 100])
        self._registry.canaries.start(OWNER, name, alias, version, weight=weight, guard=Guard(), by=self._by)

    def _trip(self, name: str, alias: str, version: str) -> None:
        trials = self._registry.describe(OWNER, name).canaries
        if alias in trials:
            self._registry.canaries.trip(OWNER, name, alias, trials[alias].trial, "a test says so")


def act_until_killed(
    store_url: str, journal: str, folders: str, versions: Mapping[str, int], seed: int, ready: Event, environment: Mapping[str, str]
) -> None:
    """A process of its own."""
    os.environ.update(environment)  # that of the server which forks these is from when it began
    written = Journal(Path(journal))
    actor = LifeActor(JournaledStore(open_store(store_url, timeout_seconds=STORE_SECONDS), written), Path(folders), versions, seed)
    ready.set()
    while True:
        actor.step()
        written.write(stepped=seed)
