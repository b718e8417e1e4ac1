"""The command `adapters gc`: what nobody can be served from any more, shown, and with --yes removed.

It works on the store itself and on this machine's scratch folders: it needs the store's credentials and no server, and one may run.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer

from adapters_store.garbage import GarbageRules
from adapters_store.local import TMP_FOLDER
from adapters_store.objects import open_store
from adapters_store.registry import Registry
from adapters_store.scratch import leftovers, remove
from cluster.cli_api import AsJson
from cluster.connection import settings_of_run
from configs.load import home as home_of
from configs.load import load, store_url
from deployments.api.resumable import ResumableUploads


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="remove it; without this it is only shown")] = False,
    grace_hours: Annotated[
        float | None, typer.Option(min=0.0, help="instead of store.grace_seconds, for retired versions", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="settings that name the store; else those of the run here", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Collect garbage: retired versions past their grace period, uploads that died. Shows what and how much; --yes removes it."""
    settings = load(config) if config else settings_of_run()
    url = store_url(settings)
    rules = GarbageRules(settings.store.grace_seconds if grace_hours is None else grace_hours * 3600)
    store = open_store(url, timeout_seconds=settings.store.timeout_seconds)
    registry = Registry(store)
    count, size_bytes = 0, 0
    for found in registry.garbage.collect(rules, remove=yes):
        count, size_bytes = count + 1, size_bytes + found.size_bytes
        name = f"{found.owner}/{found.name}@{found.version[:12]}"
        kept = "" if found.removed or not yes else "  in use again, or not done: kept"
        line = f"{name}  {found.why}, {found.files} files, {found.size_bytes / 1e6:.1f} MB{kept}"
        typer.echo(json.dumps(dataclasses.asdict(found)) if as_json else line)
    for leftover in leftovers((home_of(settings) / "uploads", *_unfinished_objects(url)), older_than_seconds=rules.unfinished_seconds):
        count, size_bytes = count + 1, size_bytes + leftover.size_bytes
        if yes:
            remove(leftover)
        row = {"path": str(leftover.path), "why": "scratch", "size_bytes": leftover.size_bytes, "removed": yes}
        typer.echo(json.dumps(row) if as_json else f"{leftover.path}  scratch, {leftover.size_bytes / 1e6:.1f} MB")
    swept = ResumableUploads(store, settings.uploads).sessions.sweep() if yes else 0  # gateways do too, while there are uploads
    if not as_json:
        also = f", and {swept} resumable uploads that had expired" if swept else ""
        hint = "" if yes or not count else ": run it with --yes to remove that"
        typer.echo(f"{'collected' if yes else 'found'} {count} pieces of garbage, {size_bytes / 1e6:.1f} MB{also}{hint}")


def _unfinished_objects(url: str) -> tuple[Path, ...]:
    """Where a store in a folder keeps objects that are not whole yet."""
    parts = urlsplit(url)
    return (Path(unquote(parts.path)) / TMP_FOLDER,) if parts.scheme == "file" else ()


def register(adapters: typer.Typer) -> None:
    """Add this command to `lorikeet adapters`."""
    adapters.command()(gc)
