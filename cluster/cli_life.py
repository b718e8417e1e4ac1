"""The commands that change an adapter as a whole: `adapters label`, and what takes it away and brings it back."""

from __future__ import annotations

from typing import Annotated

import typer

from adapters_store.names import ModelRef
from cluster.cli_api import Key, Name, Private, Tags, Url, owner_and_name, pairs_of
from cluster.connection import connect
from configs.load import ConfigError

VersionName = Annotated[str, typer.Argument(metavar="OWNER/NAME[@VERSION]", help="without a version: all of it")]


def label(
    name: Name,
    tag: Tags = None,
    untag: Annotated[list[str] | None, typer.Option(metavar="KEY", help="take this tag off", show_default=False)] = None,
    private: Private = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Set or take off tags, and say who may see the adapter."""
    owner, plain = owner_and_name(name)
    with connect(url, key) as client:
        now = client.change_labels(owner, plain, tags={**dict.fromkeys(untag or ()), **pairs_of(tag)}, private=private)
    typer.echo("  ".join([now["id"], now["visibility"], *(f"{key}={value}" for key, value in now["tags"].items())]))


def rm(name: VersionName, url: Url = None, key: Key = None) -> None:
    """Delete an adapter, or one version of it. Running requests finish; it can be undeleted until its files are collected."""
    ref = _version_of(name)
    with connect(url, key) as client:
        client.delete(ref.owner, ref.name, ref.version)
    typer.echo(f"deleted: {ref}; `lorikeet adapters undelete {ref}` brings it back while its files are there")


def undelete(name: VersionName, url: Url = None, key: Key = None) -> None:
    """Bring back a deleted adapter with its aliases, or one version."""
    ref = _version_of(name)
    with connect(url, key) as client:
        client.undelete(ref.owner, ref.name, ref.version)
    typer.echo(f"back: {ref}")


def _version_of(text: str) -> ModelRef:
    ref = ModelRef.parse(text)
    if ":" in text:
        raise ConfigError(f"{text!r} names an alias: give owner/name, or owner/name@version (`adapters unalias` deletes an alias)")
    return ref


def register(adapters: typer.Typer) -> None:
    """Add these commands to `lorikeet adapters`."""
    for command in (label, rm, undelete):
        adapters.command()(command)
