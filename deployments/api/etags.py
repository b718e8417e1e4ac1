"""Etags between HTTP, which writes them in quotes, and the store, which has none."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header


def quoted(etag: str) -> str:
    return f'"{bare(etag)}"'


def bare(etag: str) -> str:
    return etag.strip('"')


def _if_match(if_match: Annotated[str | None, Header()] = None) -> str | None:
    return bare(if_match) if if_match is not None else None


IfMatch = Annotated[str | None, Depends(_if_match)]
