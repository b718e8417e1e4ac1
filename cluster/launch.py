"""`lorikeet up`: one supervisor process that starts everything, waits, and stops everything.

    settings -> hold the home -> clear what a killed run left -> checks -> base model on disk -> environment -> Ray
    -> Serve applications -> first key -> ready -> demo adapters -> print how to ask -> wait -> stop

Every process it starts carries the run's marker (see `processes.py`), so that stopping can look for what is left.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapters_store.objects import open_store
from cluster import ray_node, run_file
from cluster.client import Client
from cluster.doctor import require
from cluster.keys import first_key
from cluster.ports import reachable_host
from cluster.processes import RUN_ID, kill_run, stop_run
from cluster.progress import Progress
from cluster.run_file import Run
from cluster.signals import StopRequested, StopSignals
from cluster.welcome import welcome
from configs.load import home as home_of
from configs.load import load, store_url
from configs.settings import Settings
from deployments.environment import environment as environment_of

DEMO_ADAPTERS = Path(__file__).parent.parent / "examples" / "adapters" / "demo"
DRAIN_SECONDS = 10.0  # what Serve, then Ray, get to end in order; together with the rest a stop takes under 15 s
DISCONNECT_SECONDS = 3.0
INTERRUPTED = 130  # the exit code of a start that was stopped before it was ready, as a shell has it for Ctrl-C


@dataclass(frozen=True, slots=True)
class Launch:
    """What one `up` works with."""

    settings: Settings
    home: Path
    url: str
    run: Run


def up(config: Path | None, overrides: tuple[str, ...], progress: Progress) -> int:
    """Start, serve until asked to stop, stop; returns the exit code.

    Raises:
        ConfigError, AlreadyRunning, CheckFailed, BadKey, LorikeetError, RuntimeError: it could not start; nothing is left running.
    """
    settings = load(config, overrides)
    home = home_of(settings)
    with run_file.exclusive(home):
        clear_leftovers(home, progress)
        url = base_url(settings)
        launch = Launch(settings, home, url, Run.begin(url, config, overrides, settings.ray.address))
        os.environ[RUN_ID] = launch.run.run_id  # inherited by every process from here on
        signals = StopSignals(lambda: kill_run(launch.run.run_id))
        signals.install()
        was_ready = False
        try:
            run_file.write(home, launch.run)
            _start(launch, signals, progress)
            was_ready = True
            signals.wait()
        except (StopRequested, SystemExit):  # Ray's own handler of SIGTERM, while it starts, exits
            progress.note("stopping (again: Ctrl-C kills at once)")
        finally:
            signals.requested = True  # from here on a signal kills
            clean = _stop(launch, progress)
        code = 0 if was_ready else INTERRUPTED
        if not clean:
            sys.stdout.flush()
            os._exit(code)  # leaving in order would wait for the thread that hangs
        return code


def base_url(settings: Settings) -> str:
    """Where a client on this machine reaches the gateway."""
    host = reachable_host(settings.gateway.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.gateway.port}"


def clear_leftovers(home: Path, progress: Progress) -> None:
    """Stop what a run of this home left when it was killed. The home's lock is ours, so whatever is left has no supervisor.

    In a Ray that it joined Serve goes on, and this `up` takes it over: its HAProxy keeps its files.
    """
    dead = run_file.read(home)
    if dead is None:
        return
    stopped = stop_run(dead.run_id)
    if stopped:
        progress.note(f"stopped {stopped} processes that an earlier run (pid {dead.pid}) left behind")
    if not dead.joined:
        ray_node.forget(dead.run_id)
    run_file.remove(home)


def _start(launch: Launch, signals: StopSignals, progress: Progress) -> None:
    settings, home = launch.settings, launch.home
    with progress.step("Checking this machine"):
        require(settings)
    if any(model.source == "embedded" for model in settings.models):
        from cluster.embedded import prepare

        with progress.step("Preparing the embedded base model"):
            prepare(home, progress.note)
    store = open_store(store_url(settings), timeout_seconds=settings.store.timeout_seconds)
    key = first_key(home, store)

    environment = ray_node.set_environment(launch.run.run_id, environment_of(settings))
    with progress.step("Starting Ray" if not settings.ray.address else f"Joining Ray at {settings.ray.address}"):
        ray_node.start(settings.ray.address, environment)
    signals.install()  # Ray set its own handlers
    from deployments import app  # not before: Serve reads its environment when it is imported

    with _plain_errors():
        with progress.step("Starting Ray Serve"):
            app.deploy(settings, home)
        with progress.step("Waiting for the models"):
            app.wait_ready(settings, progress.note, max(model.startup_timeout_seconds for model in settings.models))
    demos = _publish_demos(launch, key, progress) if _wants_demos(settings) else ()
    progress.plain(welcome(settings, launch.url, key, demos, ray_node.log_folder()))
    run_file.write(
        home, launch.run.ready(ray_node.address(), os.environ.get(ray_node.AUTH_MODE, ""))
    )  # after the last line: `up -d` shows what was printed until then


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn Ray's errors, which carry the whole trace of another process, into one line and the place where the rest is."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        cause = str(getattr(error, "cause", None) or error).strip()
        raise RuntimeError(f"Ray Serve did not start: {cause.partition(chr(10))[0]} (all of it is in {ray_node.log_folder()})") from error


def _wants_demos(settings: Settings) -> bool:
    """They are for the embedded model: an overlay that serves others leaves them out without having to say so."""
    return settings.demo_adapters and any(model.source == "embedded" for model in settings.models)


def _publish_demos(launch: Launch, key: str, progress: Progress) -> tuple[str, ...]:
    """Publish the adapters in examples/ as demo/<name>; the same content again changes nothing."""
    folders = sorted(file.parent for file in DEMO_ADAPTERS.glob("*/adapter_config.json"))
    with progress.step(f"Publishing {len(folders)} demo adapters"), Client(launch.url, key) as client:
        for folder in folders:
            client.push(folder, "demo", folder.name)
    return tuple(f"demo/{folder.name}" for folder in folders)


def _stop(launch: Launch, progress: Progress) -> bool:
    """End Serve, then Ray, each in its bound, then whatever of the run still lives. False if something hangs in this process."""
    drained = True
    # Ray prints remarks on its own end that read like errors; our steps keep the stream they have.
    with progress.step("Stopping"), contextlib.redirect_stdout(io.StringIO()):
        if ray_node.is_connected():
            from deployments import app

            drained = ray_node.within(DRAIN_SECONDS, "serve", app.shutdown)
            if drained:
                ray_node.within(DISCONNECT_SECONDS, "ray", ray_node.disconnect)
            # Otherwise its thread still calls Ray, and Ray ends a process that calls it after leaving: kill the cluster instead.
        stop_run(launch.run.run_id, grace_seconds=1.0)
        if drained or not launch.run.joined:
            ray_node.forget(launch.run.run_id)
        run_file.remove(launch.home)
    return drained
