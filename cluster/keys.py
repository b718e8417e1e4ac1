"""The first API key: LORIKEET_API_KEY if it is set, else the one kept in `home/api_key`, made on the first `lorikeet up`."""

from __future__ import annotations

import os
from pathlib import Path

from adapters_store.access import Scope
from adapters_store.errors import Conflict
from adapters_store.keys import KeyRing
from adapters_store.objects import ObjectStore
from cluster.run_file import write_private

PRESET = "LORIKEET_API_KEY"
MIN_SECRET_CHARACTERS = 8


class BadKey(Exception):
    """The first key cannot be a bearer key, or is one no more."""


def known_key(home: Path) -> str | None:
    """The first key without making one: what the command's own requests are signed with."""
    preset = os.environ.get(PRESET)
    if preset:
        return _checked(preset)
    try:
        return (home / "api_key").read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def first_key(home: Path, store: ObjectStore) -> str:
    """The first key, issued in `store` if it is not yet; a made one is kept in home with mode 0600.

    Raises:
        BadKey: the preset is too short, cannot be sent in a header, or was revoked.
    """
    ring = KeyRing(store)
    known = known_key(home)
    try:
        secret, _ = ring.create("first", secret=known, scopes=[Scope.ADMIN])
    except Conflict:
        where = PRESET if os.environ.get(PRESET) else f"the file api_key in {home}"
        raise BadKey(f"the first key, from {where}, was revoked: set another {PRESET}, or remove the file so that one is made") from None
    if known is None:
        write_private(home / "api_key", secret + "\n")
    return secret


def _checked(secret: str) -> str:
    if len(secret) >= MIN_SECRET_CHARACTERS and secret.isascii() and secret.isprintable() and " " not in secret:
        return secret
    raise BadKey(
        f"{PRESET} must be at least {MIN_SECRET_CHARACTERS} printable ASCII characters without spaces: set a longer one, or unset it"
    )
