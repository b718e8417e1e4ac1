"""The commands that move an adapter's names: `adapters alias|unalias|rollback|history`."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from cluster.cli_api import AsJson, Key, Name, Url, alias_of, owner_and_name
from cluster.connection import connect

AliasName = Annotated[str, typer.Argument(metavar="OWNER/NAME[:ALIAS]", help="without an alias: production")]
IfMatch = Annotated[str | None, typer.Option("--if-match", help="only if the adapter's etag is still this one", show_default=False)]


def alias(
    name: AliasName,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="its digest, or at least 8 digits of it")],
    if_match: IfMatch = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Point an alias at a version; the alias is made if it is new."""
    ref = alias_of(name)
    with connect(url, key) as client:
        now = client.move_alias(ref.owner, ref.name, ref.alias or "", version, if_match=if_match)
    typer.echo(f"{ref} is now {ref.adapter_name}@{now}")


def unalias(name: AliasName, if_match: IfMatch = None, url: Url = None, key: Key = None) -> None:
    """Delete an alias; the versions stay."""
    ref = alias_of(name)
    with connect(url, key) as client:
        client.delete_alias(ref.owner, ref.name, ref.alias or "", if_match=if_match)
    typer.echo(f"deleted: {ref.adapter_name}:{ref.alias}")


def rollback(name: AliasName, if_match: IfMatch = None, url: Url = None, key: Key = None) -> None:
    """Point an alias back at the version that it had before. Twice goes back two versions."""
    ref = alias_of(name)
    with connect(url, key) as client:
        now = client.roll_back(ref.owner, ref.name, ref.alias or "", if_match=if_match)
    typer.echo(f"{ref} is back at {ref.adapter_name}@{now}")


def history(
    name: Name,
    only: Annotated[str | None, typer.Option("--alias", help="only this alias's moves", show_default=False)] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show what moved an adapter's aliases, newest first: when, who, why, from where, to where."""
    with connect(url, key) as client:
        moves = client.history(*owner_and_name(name), alias=only)
    if as_json:
        typer.echo(json.dumps(moves, indent=2))
        return
    for move in moves:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(move["at"]))
        who = move["by"]["name"] or move["by"]["key"] or move["by"]["tenant"]
        came, went = ((move[end] or "nothing")[:12] for end in ("from", "to"))
        typer.echo(f"{when}  {move['alias']:<16} {came:<12} -> {went:<12}  {move['why']:<12} {who:<16} {move.get('note', '')}".rstrip())


def register(adapters: typer.Typer) -> None:
    """Add these commands to `lorikeet adapters`."""
    for command in (alias, unalias, rollback, history):
        adapters.command()(command)
