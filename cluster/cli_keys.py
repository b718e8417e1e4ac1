"""The commands `keys create|ls|revoke`.

They read and write the store itself: whoever may write there owns the keys, and there is no HTTP call for it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters_store.access import Scope
from adapters_store.keys import NEW_KEY_SCOPES, KeyRecord, KeyRing
from adapters_store.objects import open_store
from cluster.cli_api import AsJson
from cluster.connection import settings_of_run
from configs.load import load, store_url

keys = typer.Typer(help="API keys.", no_args_is_help=True)

Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="settings that name the store; else those of the run here", show_default=False),
]


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="what it is for, e.g. ci")],
    tenant: Annotated[str, typer.Option(help="whose it is: the owner of the adapters that it may change")] = "default",
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="what it may do, may be given more than once; infer and upload if not given", show_default=False),
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key in the store and print it. It is shown once: only its hash is kept."""
    secret, record = _ring(config).create(name, tenant=tenant, scopes=scope or NEW_KEY_SCOPES)
    typer.echo(json.dumps({"key": secret, **_as_dict(record)}) if as_json else secret)


@keys.command("ls")
def list_keys(config: Config = None, as_json: AsJson = False) -> None:
    """List the keys, oldest first: their ids, never the keys."""
    for record in _ring(config).list():
        if as_json:
            typer.echo(json.dumps(_as_dict(record)))
            continue
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.created_at))
        state = "  revoked" if record.revoked_at is not None else ""
        typer.echo(f"{record.id}  {record.tenant:<24} {','.join(sorted(record.scopes)):<16} {made}  {record.name}{state}")


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="the key's id, of `lorikeet keys ls`")],
    config: Config = None,
) -> None:
    """Revoke a key: it is refused everywhere within a minute."""
    record = _ring(config).revoke(key_id)
    typer.echo(f"revoked: {record.id} ({record.name}, tenant {record.tenant}); refused everywhere within a minute")


def _ring(config: Path | None) -> KeyRing:
    settings = load(config) if config else settings_of_run()
    return KeyRing(open_store(store_url(settings), timeout_seconds=settings.store.timeout_seconds))


def _as_dict(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "tenant": record.tenant,
        "scopes": sorted(record.scopes),
        "created_at": int(record.created_at),
        "revoked": record.revoked_at is not None,
    }
