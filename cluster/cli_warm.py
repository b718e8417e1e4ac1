"""The command that loads an adapter before it is asked for: `adapters warm`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from adapters_store.names import PRODUCTION, ModelRef
from cluster.cli_api import AsJson, Key, Url
from cluster.connection import connect

AnyName = Annotated[str, typer.Argument(metavar="OWNER/NAME[:ALIAS|@VERSION]", help="without either: what production serves")]


def warm(
    name: AnyName,
    replicas: Annotated[int, typer.Option(min=1, help="on how many replicas; all, where fewer run")] = 1,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Load a version where it will be asked for, so that its first request does not wait. Moving an alias does so by itself."""
    ref = ModelRef.parse(name)
    with connect(url, key) as client:
        version = ref.version or client.alias(ref.owner, ref.name, ref.alias or PRODUCTION)["version"]
        told = client.warm(ref.owner, ref.name, version, replicas=replicas)
    if as_json:
        typer.echo(json.dumps(told))
        return
    found = ", ".join(f"{where} in {wait_ms / 1e3:.1f} s" for where, wait_ms in zip(told["found"], told["wait_ms"], strict=True))
    typer.echo(f"warm: {told['id']} on {told['replicas']} of {told['running']} replicas (from {found})")


def register(adapters: typer.Typer) -> None:
    """Add this command to `lorikeet adapters`."""
    adapters.command()(warm)
