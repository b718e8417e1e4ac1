"""Names: what a request's `model` says, parsed once at the edge into a `ModelRef`.

    owner/name            the adapter's `production` alias
    owner/name:alias      another alias
    owner/name@version    exactly that version; a unique prefix of at least 8 hex digits will do

Owner, name and alias are 1 to 96 letters, digits, '.', '_' or '-', starting with a letter or digit: safe as one segment of an
S3 key, of a URL and of a path. A base model's id is looked up before this grammar is applied (see `deployments/dispatch.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapters_store.errors import InvalidName

PRODUCTION = "production"
MIN_VERSION_DIGITS = 8
VERSION_DIGITS = 64

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_VERSION = re.compile(rf"[0-9a-f]{{{MIN_VERSION_DIGITS},{VERSION_DIGITS}}}")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One parsed adapter name. Exactly one of `alias` and `version` is set; `version` may be a prefix."""

    owner: str
    name: str
    alias: str | None
    version: str | None

    @classmethod
    def parse(cls, text: str) -> ModelRef:
        """Parse `owner/name`, `owner/name:alias` or `owner/name@version`.

        Raises:
            InvalidName: saying which part is wrong and what it may be.
        """
        owner, slash, rest = text.partition("/")
        if not slash:
            raise InvalidName(f"{_quote(text)} is neither a base model nor an adapter: an adapter is named owner/name", param="model")
        name, at, version = rest.partition("@")
        if at:
            return cls(check_segment("owner", owner), check_segment("name", name), None, check_version(version))
        name, colon, alias = rest.partition(":")
        alias = check_segment("alias", alias) if colon else PRODUCTION
        return cls(check_segment("owner", owner), check_segment("name", name), alias, None)

    @property
    def adapter_name(self) -> str:
        return f"{self.owner}/{self.name}"

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.adapter_name}@{self.version}"
        return self.adapter_name if self.alias == PRODUCTION else f"{self.adapter_name}:{self.alias}"


def check_segment(what: str, text: str) -> str:
    """`text` if it may be an owner, name or alias (`what` says which); raises InvalidName otherwise."""
    if not _SEGMENT.fullmatch(text):
        raise InvalidName(
            f"{what} {_quote(text)} is not valid: use 1 to 96 letters, digits, '.', '_' or '-', starting with a letter or digit",
            param="model",
        )
    return text


def check_version(text: str) -> str:
    """`text` if it may be a version or a prefix of one; raises InvalidName otherwise."""
    if not _VERSION.fullmatch(text):
        raise InvalidName(
            f"version {_quote(text)} is not valid: give {MIN_VERSION_DIGITS} to {VERSION_DIGITS} lower-case hex digits", param="model"
        )
    return text


def _quote(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")
