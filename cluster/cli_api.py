"""The commands that talk to a running server: `adapters push|import|ls|show`, `chat`.

More of them: `cli_aliases.py`, `cli_canary.py`, `cli_life.py`, `cli_warm.py`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters_store.names import ModelRef
from cluster.chat import converse
from cluster.client import Pushed
from cluster.connection import connect
from cluster.progress_bar import ProgressBar
from configs.load import ConfigError

adapters = typer.Typer(help="Upload and look at adapters.", no_args_is_help=True)

Url = Annotated[
    str | None, typer.Option("--url", help="the server; else LORIKEET_BASE_URL, else the one that is up here", show_default=False)
]
Key = Annotated[str | None, typer.Option("--key", help="the API key; else LORIKEET_API_KEY, else the first key", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]
Name = Annotated[str, typer.Argument(metavar="OWNER/NAME")]
ShownName = Annotated[str, typer.Argument(metavar="OWNER/NAME[@VERSION]")]
PushName = Annotated[str, typer.Argument(metavar="OWNER/NAME[:ALIAS]", help="with an alias, that one is pointed at it, not production")]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="may be given more than once", show_default=False)]
Private = Annotated[bool | None, typer.Option("--private/--public", help="who may see and ask it; else as it is", show_default=False)]


@adapters.command()
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a PEFT folder", exists=True, file_okay=False)],
    name: PushName,
    tag: Tags = None,
    private: Private = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Upload an adapter; its name is served as soon as this returns. Goes on by itself, or when run again, where it broke off."""
    tags = pairs_of(tag)
    ref = alias_of(name)
    with connect(url, key) as client, ProgressBar(sys.stderr, show=not as_json) as bar:
        pushed = client.push(folder, ref.owner, ref.name, bar.update, tags=tags, private=private, alias=ref.alias)
    typer.echo(json.dumps(_as_dict(pushed)) if as_json else _sentence(pushed))


@adapters.command("import")
def import_version(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="s3://bucket/path or hf://owner/name[@revision]")],
    name: PushName,
    tag: Tags = None,
    private: Private = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Have the server fetch an adapter from a bucket or a hub; its name is served as soon as this returns."""
    tags = pairs_of(tag)
    ref = alias_of(name)
    with connect(url, key) as client:
        pushed = client.import_version(source, ref.owner, ref.name, tags=tags, private=private, alias=ref.alias)
    typer.echo(json.dumps(_as_dict(pushed)) if as_json else _sentence(pushed))


@adapters.command("ls")
def list_adapters(
    owner: Annotated[str | None, typer.Option(help="only this owner's", show_default=False)] = None,
    base: Annotated[str | None, typer.Option(help="only those of this base model", show_default=False)] = None,
    tag: Tags = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List the adapters, one per line (with --json one object per line)."""
    with connect(url, key) as client:
        for row in client.list_adapters(owner=owner, base=base, tags=pairs_of(tag)):
            if as_json:
                typer.echo(json.dumps(dataclasses.asdict(row)))
            else:
                labels = " ".join([*(["private"] if row.private else []), *(f"{name}={value}" for name, value in row.tags.items())])
                typer.echo(f"{row.id:<40} {row.base:<24} rank {row.rank:<4} {(row.version or '')[:12]}  {labels}".rstrip())


@adapters.command()
def show(name: ShownName, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show an adapter's versions and what its aliases point to; or whether one version is ready, pending or rejected, and why."""
    ref = ModelRef.parse(name)
    if ref.version is not None:
        with connect(url, key) as client:
            _show_version(client.version(ref.owner, ref.name, ref.version), as_json)
        return
    with connect(url, key) as client:
        detail = client.show(*owner_and_name(name))
    if as_json:
        typer.echo(json.dumps(detail, indent=2))
        return
    pointing: dict[str, list[str]] = {}
    for alias, version in detail["aliases"].items():
        pointing.setdefault(version, []).append(alias)
    for alias, canary in detail.get("canaries", {}).items():
        pointing.setdefault(canary["version"], []).append(f"{canary['weight']:g} % of {alias}")
    labels = [f"{name}={value}" for name, value in detail.get("tags", {}).items()]
    typer.echo("  ".join([detail["id"], detail.get("visibility", "public"), *labels]))
    if "etag" in detail:
        typer.echo(f"  etag {detail['etag']}")
    for row in detail["versions"]:
        aliases = ", ".join(pointing.get(row["version"], []))
        typer.echo(f"  {row['version'][:12]}  {row['base']}  rank {row['rank']}  {row['size_bytes'] / 1e6:.1f} MB  {aliases}")
    for status in ("pending", "rejected"):
        for version in detail.get(status, []):
            typer.echo(f"  {version[:12]}  {status}")


def _show_version(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(row, indent=2))
        return
    typer.echo(f"{row['owner']}/{row['name']}@{row['version']}  {row['status']}")
    for reason in row.get("reasons", []):
        typer.echo(f"  {reason}")


def chat(
    model: Annotated[str, typer.Option("--model", "-m", help="a base model or an adapter")],
    prompt: Annotated[str | None, typer.Argument(help="one question; without it, a conversation", show_default=False)] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1)] = 256,
    url: Url = None,
    key: Key = None,
) -> None:
    """Chat in the terminal; the answer appears as it is written. Ctrl-D ends it."""
    with connect(url, key) as client:
        converse(client, model, prompt, temperature=temperature, max_tokens=max_tokens)


def pairs_of(texts: list[str] | None) -> dict[str, str]:
    """`key=value` words as a dict. Raises ConfigError."""
    pairs = [text.partition("=") for text in texts or ()]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise ConfigError(f"{key + equals + value!r} is no tag: give it as key=value")
    return {key: value for key, _, value in pairs}


def alias_of(text: str) -> ModelRef:
    """An alias's name; owner/name is its production. Raises ConfigError, InvalidName."""
    ref = ModelRef.parse(text)
    if ref.alias is None:
        raise ConfigError(f"{text!r} names a version: give an alias as owner/name:alias, or owner/name for production")
    return ref


def owner_and_name(text: str) -> tuple[str, str]:
    """The parts of a name that names neither alias nor version. Raises ConfigError, InvalidName."""
    ref = ModelRef.parse(text)
    if ref.adapter_name != text:
        raise ConfigError(f"{text!r} names an alias or a version: give the adapter as owner/name")
    return ref.owner, ref.name


def _as_dict(pushed: Pushed) -> dict[str, object]:
    return dataclasses.asdict(pushed)


def _sentence(pushed: Pushed) -> str:
    if not pushed.ready:
        return f"pending: {pushed.id} (base {pushed.base}, rank {pushed.rank}): served once it has been tried on a replica"
    return f"{'published' if pushed.created else 'unchanged'}: {pushed.id} (base {pushed.base}, rank {pushed.rank})"
