"""API keys in the store, hashed: `keys/<id>.json` holds who a key stands for, what it may do and its sha256, never the key.

The id is the first 16 hex digits of the hash, so that a key is found with one read and may be logged. A key has 256 random bits, so a
plain sha256 is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapters_store.access import SEES_ALL, Scope, Viewer
from adapters_store.errors import Conflict, InternalError, InvalidRequest, NotFound, PermissionDenied
from adapters_store.history import Actor
from adapters_store.names import check_segment
from adapters_store.objects import ObjectStore
from adapters_store.paging import objects_under

PREFIX = "lk-"
SECRET_BYTES = 32
ID_DIGITS = 16
MAX_SECRET_CHARS = 512
NEW_KEY_SCOPES = (Scope.INFER, Scope.UPLOAD)
REVOKE_TRIES = 8

_ID = re.compile(rf"[0-9a-f]{{{ID_DIGITS}}}")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is known of a key. `id` may be shown and logged."""

    id: str
    name: str
    tenant: str
    created_at: float  # seconds since the epoch
    scopes: frozenset[Scope] = frozenset({Scope.ADMIN})
    revoked_at: float | None = None

    @property
    def is_admin(self) -> bool:
        return Scope.ADMIN in self.scopes

    @property
    def viewer(self) -> Viewer:
        """Whose private adapters it sees."""
        return SEES_ALL if self.is_admin else Viewer(self.tenant)

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or self.is_admin

    def owns(self, owner: str) -> bool:
        """Whether adapters of `owner` are its own to see, and with the scope for it to change."""
        return self.is_admin or self.tenant == owner

    def require(self, scope: Scope) -> None:
        """Raises PermissionDenied without `scope`."""
        if not self.may(scope):
            has = " and ".join(sorted(self.scopes)) or "no scope"
            raise PermissionDenied(f"this needs a key with the scope {scope}, and this one has {has}: use another key")

    @property
    def actor(self) -> Actor:
        """The key, as histories tell of it."""
        return Actor(self.id, self.name, self.tenant)


class KeyRing:
    """Calls block. Nothing is cached here: `deployments/api/auth.py` does, for as long as a revoked key may live on."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(
        self, name: str, *, tenant: str = "default", secret: str | None = None, scopes: Iterable[Scope] = NEW_KEY_SCOPES
    ) -> tuple[str, KeyRecord]:
        """Make a key, or take `secret` as one; the key itself (shown this once) and its record. The same secret again is the same key.

        Raises:
            Conflict: the secret is that of a revoked key.
            InvalidRequest: the secret is empty, too long, or cannot stand in a header.
        """
        check_segment("tenant", tenant)
        if secret is None:
            secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        elif not _may_be_a_secret(secret):
            raise InvalidRequest(f"the key is not valid: use 1 to {MAX_SECRET_CHARS} printable ASCII characters without spaces")
        digest = _digest(secret)
        record = KeyRecord(digest[:ID_DIGITS], name, tenant, time.time(), frozenset(scopes))
        try:
            self._store.put(_key(record.id), _dump(record, digest), if_absent=True)
        except Conflict:
            existing = self.find(secret)
            if existing is None:
                raise Conflict(f"key {record.id} was revoked: it is not issued again, use another") from None
            return secret, existing
        return secret, record

    def find(self, secret: str) -> KeyRecord | None:
        """Who this key stands for, or None when nobody issued it, or it was revoked."""
        if not _may_be_a_secret(secret):
            return None
        digest = _digest(secret)
        try:
            data, _ = self._store.get(_key(digest[:ID_DIGITS]))
        except NotFound:
            return None
        record, stored_digest = _parse(data)
        is_it = hmac.compare_digest(stored_digest.encode(), digest.encode())
        return record if is_it and record.revoked_at is None else None

    def revoke(self, key_id: str) -> KeyRecord:
        """Let nobody in with this key any more; its record stays, so that the same secret is not issued again.

        Gateways that know the key honour it for up to a minute (`deployments/api/auth.py`).

        Raises:
            NotFound: there is no key with this id.
        """
        if not _ID.fullmatch(key_id):
            raise NotFound(f"there is no key {key_id[:40]!r}: `lorikeet keys ls` shows the ids")
        for _ in range(REVOKE_TRIES):
            try:
                data, etag = self._store.get(_key(key_id))
            except NotFound:
                raise NotFound(f"there is no key {key_id!r}: `lorikeet keys ls` shows the ids") from None
            record, digest = _parse(data)
            if record.revoked_at is not None:
                return record
            revoked = replace(record, revoked_at=time.time())
            try:
                self._store.put(_key(key_id), _dump(revoked, digest), if_match=etag)
                return revoked
            except Conflict:
                continue
        raise Conflict(f"key {key_id} is being changed by others: try again")

    def list(self) -> tuple[KeyRecord, ...]:
        """Every key, oldest first: one read each."""
        records = [_parse(self._store.get(info.key)[0])[0] for info in objects_under(self._store, "keys/")]
        return tuple(sorted(records, key=lambda record: (record.created_at, record.id)))


def _may_be_a_secret(secret: str) -> bool:
    return 0 < len(secret) <= MAX_SECRET_CHARS and secret.isascii() and secret.isprintable() and " " not in secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(key_id: str) -> str:
    return f"keys/{key_id}.json"


def _dump(record: KeyRecord, digest: str) -> bytes:
    revoked = {"revoked_at": record.revoked_at} if record.revoked_at is not None else {}
    body = {
        "id": record.id,
        "name": record.name,
        "tenant": record.tenant,
        "scopes": sorted(record.scopes),
        "created_at": record.created_at,
        "sha256": digest,
        **revoked,
    }
    return json.dumps(body, indent=1).encode()


def _parse(data: bytes) -> tuple[KeyRecord, str]:
    try:
        body = json.loads(data)
        revoked_at = body.get("revoked_at")
        record = KeyRecord(
            str(body["id"]),
            str(body["name"]),
            str(body["tenant"]),
            float(body["created_at"]),
            _scopes(body),
            float(revoked_at) if revoked_at is not None else None,
        )
        return record, str(body["sha256"])
    except (ValueError, TypeError, KeyError):
        raise InternalError("a key's record in the store is damaged: the operator has to delete it and issue the key again") from None


def _scopes(body: Mapping[str, Any]) -> frozenset[Scope]:
    """A record from before there were scopes may do everything, as it could then. Scopes that this release does not know give nothing."""
    if "scopes" not in body:
        return frozenset({Scope.ADMIN})
    known = set(Scope)
    return frozenset(Scope(text) for text in body["scopes"] if text in known)
