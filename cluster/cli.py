"""The `lorikeet` command: start, stop, look. What talks to a running server is in `cli_api.py`.

Exit codes: 0 done; 1 it failed, with one line that says why; 2 the command line itself was wrong; 130 stopped before it was ready.
LORIKEET_DEBUG=1 shows the trace of a failure.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from adapters_store.errors import LorikeetError
from cluster import cli_aliases, cli_api, cli_canary, cli_gc, cli_keys, cli_life, cli_warm, detached, doctor, run_file
from cluster.client import ApiError, Client
from cluster.keys import BadKey
from cluster.launch import up as launch_up
from cluster.progress import Progress
from cluster.run_file import AlreadyRunning
from configs.load import ConfigError, load
from configs.load import home as home_of

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
cli_aliases.register(cli_api.adapters)
cli_canary.register(cli_api.adapters)
cli_life.register(cli_api.adapters)
cli_warm.register(cli_api.adapters)
cli_gc.register(cli_api.adapters)
app.add_typer(cli_api.adapters, name="adapters")
app.add_typer(cli_keys.keys, name="keys")
app.command()(cli_api.chat)

EXPECTED = (
    ConfigError, AlreadyRunning, BadKey, ApiError, LorikeetError, doctor.CheckFailed, detached.StartFailed, detached.StopFailed,
    OSError, RuntimeError,
)  # fmt: skip
MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}

Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file over configs/base.yaml", show_default=False)]
Words = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, e.g. gateway.port=8001", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        typer.echo(f"lorikeet {version('lorikeet')}")
    except PackageNotFoundError:
        typer.echo("lorikeet, not installed (run from its folder)")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit", is_eager=True, callback=_print_version)] = False,
) -> None:
    """Serve LoRA adapters by name from a few base models."""


@app.command()
def up(
    words: Words = None, config: Config = None, detach: Annotated[bool, typer.Option("--detach", "-d", help="return when ready")] = False
) -> None:
    """Start everything and serve until Ctrl-C."""
    overrides = tuple(words or ())
    if not detach:
        raise typer.Exit(launch_up(config, overrides, Progress()))
    settings = load(config, overrides)
    arguments = [*(["--config", str(config.absolute())] if config else []), *overrides]
    bound = 600.0 + max(model.startup_timeout_seconds for model in settings.models)
    run = detached.start(home_of(settings), arguments, timeout_seconds=bound, show=lambda text: typer.echo(text, nl=False))
    typer.echo(f"\nRunning in the background (pid {run.pid}); stop it with `lorikeet down`.")


@app.command()
def down(words: Words = None, config: Config = None) -> None:
    """Stop what `up` started."""
    settings = load(config, words or ())
    typer.echo("stopped" if detached.down(settings) else f"nothing is up in {home_of(settings)}")


@app.command()
def status(words: Words = None, config: Config = None, as_json: AsJson = False) -> None:
    """Say whether it is up and ready, and what it serves. Exit code 1 unless a request would be answered."""
    report = _status(home_of(load(config, words or ())))
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        for key, value in report.items():
            typer.echo(f"{key:<10} {value if isinstance(value, str | int | float | bool) else json.dumps(value)}")
    raise typer.Exit(0 if report["ready"] else 1)


@app.command("doctor")
def doctor_command(words: Words = None, config: Config = None, as_json: AsJson = False) -> None:
    """Check this machine and the store; say what to do about each fault. Exit code 1 if one of them prevents serving."""
    checks = doctor.examine(load(config, words or ()))
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(f"{MARKS[check.state]}  {check.name:<9} {check.detail}" + (f"\n      -> {check.remedy}" if check.remedy else ""))
    raise typer.Exit(1 if any(check.state == "fail" for check in checks) else 0)


@app.command()
def deploy(
    words: Words = None,
    config: Config = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="change it without asking")] = False,
    as_json: AsJson = False,
) -> None:
    """Have a running cluster serve these settings: base models added, changed, removed. Shows what would change, and asks."""
    from cluster import deploy as deploying

    def agree(plan: Any) -> bool:
        typer.echo(deploying.describe(plan), err=as_json)
        return yes or (sys.stdin.isatty() and typer.confirm("Change it so?", err=as_json))

    plan, applied = deploying.deploy(load(config, words or ()), agree, Progress(sys.stderr if as_json else None))
    if as_json:
        typer.echo(json.dumps(deploying.as_json(plan, applied), indent=2))
    elif plan.empty:
        typer.echo(deploying.describe(plan))
    elif not applied:
        typer.echo("Nothing was changed; --yes changes it without asking.")
    raise typer.Exit(0 if applied else 1)


@app.command("serve-config")
def serve_config_command(words: Words = None, config: Config = None) -> None:
    """Print the settings as Ray Serve's configuration, for a cluster kept by a file: serveConfigV2 of KubeRay's RayService."""
    import yaml

    from deployments.serve_config import serve_config

    typer.echo(yaml.safe_dump(serve_config(load(config, words or ())), sort_keys=False, width=120), nl=False)


def _status(home: Path) -> dict[str, Any]:
    run = run_file.read(home)
    if run is None or not run.lives:
        return {"running": False, "ready": False, "home": str(home)}
    report: dict[str, Any] = {
        "running": True,
        "ready": False,
        "home": str(home),
        "pid": run.pid,
        "url": run.url,
        "started_at": run.started_at,
    }
    try:
        with Client(run.url, None) as client:
            ready, said = client.ready()
    except ApiError as error:
        return {**report, "reason": error.message}
    return {**report, **said, "ready": ready}


def main() -> None:
    """The entry point: turns what was expected to go wrong into one line and an exit code."""
    logging.basicConfig(level=logging.DEBUG if os.environ.get("LORIKEET_DEBUG") else logging.WARNING)
    try:
        app(prog_name="lorikeet")
    except EXPECTED as error:
        if os.environ.get("LORIKEET_DEBUG"):
            raise
        typer.echo(f"lorikeet: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
