"""The commands that try a version beside what an alias serves: `adapters canary|promote|abort|shadow|trial`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from cluster.cli_aliases import AliasName, IfMatch
from cluster.cli_api import AsJson, Key, Url, alias_of
from cluster.connection import connect
from configs.load import ConfigError

Version = Annotated[str, typer.Argument(metavar="VERSION", help="its digest, or at least 8 digits of it")]


def canary(
    name: AliasName,
    version: Version,
    weight: Annotated[float, typer.Option(min=0.0, max=100.0, help="percent of the people who are answered by it")],
    requests: Annotated[int | None, typer.Option(min=1, help="guard: judged over each so many of its requests", show_default="200")] = None,
    error_points: Annotated[
        float | None, typer.Option(min=0.0, help="guard: percentage points more that may fail", show_default="2")
    ] = None,
    ttft_ratio: Annotated[
        float | None, typer.Option(min=1.0, help="guard: times the old p95 TTFT that it may have", show_default="1.5")
    ] = None,
    guard: Annotated[bool, typer.Option("--guard/--no-guard", help="whether it is ended by itself when it fails")] = True,
    if_match: IfMatch = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Have another version answer some of an alias's people. Again with another weight, to raise it."""
    ref = alias_of(name)
    with connect(url, key) as client:
        now = client.set_canary(
            ref.owner,
            ref.name,
            version,
            weight,
            alias=ref.alias or "",
            requests=requests,
            error_points=error_points,
            ttft_ratio=ttft_ratio,
            guarded=guard,
            if_match=if_match,
        )
    typer.echo(f"{ref}: {now['weight']:g} % are answered by {ref.adapter_name}@{now['version']}")


def promote(name: AliasName, if_match: IfMatch = None, url: Url = None, key: Key = None) -> None:
    """Point an alias at its canary. `adapters rollback` goes back."""
    ref = alias_of(name)
    with connect(url, key) as client:
        now = client.promote_canary(ref.owner, ref.name, ref.alias or "", if_match=if_match)
    typer.echo(f"{ref} is now {ref.adapter_name}@{now}")


def abort(name: AliasName, if_match: IfMatch = None, url: Url = None, key: Key = None) -> None:
    """End an alias's canary: its own version answers everybody."""
    ref = alias_of(name)
    with connect(url, key) as client:
        client.abort_canary(ref.owner, ref.name, ref.alias or "", if_match=if_match)
    typer.echo(f"{ref} has no canary any more")


def shadow(
    name: AliasName,
    version: Annotated[str | None, typer.Argument(metavar="[VERSION]", help="its digest, or at least 8 digits", show_default=False)] = None,
    share: Annotated[float | None, typer.Option(min=0.0, max=100.0, help="percent of the requests", show_default=False)] = None,
    off: Annotated[bool, typer.Option("--off", help="copy no more")] = False,
    if_match: IfMatch = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Have some of an alias's requests copied to another version, whose answers nobody sees."""
    ref = alias_of(name)
    if off == (version is not None) or off == (share is not None):
        raise ConfigError("give a VERSION and its --share, or --off alone")
    with connect(url, key) as client:
        if version is None or share is None:
            client.end_shadow(ref.owner, ref.name, ref.alias or "", if_match=if_match)
            typer.echo(f"{ref} has no shadow any more")
            return
        now = client.set_shadow(ref.owner, ref.name, version, share, alias=ref.alias or "", if_match=if_match)
    typer.echo(f"{ref}: {now['share']:g} % are copied to {ref.adapter_name}@{now['version']}")


def trial(name: AliasName, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Show what stands beside an alias, and what was counted of it."""
    ref = alias_of(name)
    with connect(url, key) as client:
        found = client.alias(ref.owner, ref.name, ref.alias or "")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"{ref} is {ref.adapter_name}@{found['version']}")
    for kind, percent in (("canary", "weight"), ("shadow", "share")):
        if (arm := found[kind]) is not None:
            typer.echo(f"{kind} {arm['version'][:12]} at {arm[percent]:g} %")
            for side, counts in arm["counts"].items():
                typer.echo(f"  {side:<8} {_sentence(counts)}")
            if arm.get("dropped"):
                typer.echo(f"  {arm['dropped']:,} copies were not made: there was no room for them")
    if found["canary"] is None and found["shadow"] is None:
        typer.echo("nothing stands beside it")


def register(adapters: typer.Typer) -> None:
    """Add these commands to `lorikeet adapters`."""
    for command in (canary, promote, abort, shadow, trial):
        adapters.command()(command)


def _sentence(counts: dict[str, Any]) -> str:
    p95 = counts["p95_ttft_seconds"]
    speed = f", p95 TTFT {p95:.3f} s over {counts['streams']:,} streams" if p95 is not None else ""
    return f"{counts['requests']:,} requests, {counts['errors']:,} failed{speed}"
