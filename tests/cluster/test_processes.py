"""Nothing of a run outlives it: its processes are found by their marker and stopped, and no other is touched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from cluster import detached, ports, processes, ray_node, run_file
from cluster.launch import clear_leftovers
from cluster.progress import Progress
from cluster.run_file import AlreadyRunning, Run
from configs.load import load

Spawn = Callable[..., subprocess.Popen[str]]

SLEEPER = "import time; print('up', flush=True); time.sleep(120)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(120)"
PARENT = f"import subprocess, sys, os; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], env={{}}); import time; time.sleep(120)"


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a Python process with a marker, once it runs; stops all of them in the end."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, run_id: str | None) -> subprocess.Popen[str]:
        environment = {**os.environ, processes.RUN_ID: run_id} if run_id else dict(os.environ)
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout and process.stdout.readline() == "up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(10)
        process.stdout and process.stdout.close()


def gone(process: subprocess.Popen[str]) -> bool:
    return process.poll() is not None or psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE


def dead_run(run_id: str, joined: str = "") -> Run:
    return Run(run_id, pid=2**22 - 7, started_at=1.0, url="http://127.0.0.1:1", config=None, overrides=(), joined=joined)


@pytest.fixture
def haproxy_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the HAProxy of run-h."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = ray_node.haproxy_folder("run-h")
    folder.mkdir()
    return folder


class Cluster:
    """Stands for a joined Ray cluster: what was asked of it, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.away = False
        monkeypatch.setattr(ray_node, "join", self._join)
        monkeypatch.setattr(ray_node, "disconnect", lambda: self.asked.append("leave"))
        monkeypatch.setattr("deployments.app.shutdown", lambda: self.asked.append("shutdown"))

    def _join(self, address: str, environment: Mapping[str, str]) -> None:
        if self.away:
            raise ConnectionError("no such cluster")
        self.asked.append(f"join {address} {environment.get(ray_node.AUTH_MODE, '')}".strip())


def test_only_processes_of_the_run_are_found(spawn: Spawn) -> None:
    ours, _, _ = spawn(SLEEPER, "run-a"), spawn(SLEEPER, "run-ab"), spawn(SLEEPER, None)
    assert [process.pid for process in processes.of_run("run-a")] == [ours.pid]


def test_a_child_that_lost_the_marker_is_found_through_its_parent(spawn: Spawn) -> None:
    parent = spawn(PARENT, "run-p")
    found = {process.pid for process in processes.of_run("run-p")}
    assert found == {parent.pid, *(child.pid for child in psutil.Process(parent.pid).children())}
    assert len(found) == 2
    assert processes.stop_run("run-p", grace_seconds=2.0) == 2
    assert processes.of_run("run-p") == []


def test_one_that_ignores_the_request_is_killed(spawn: Spawn) -> None:
    stubborn, polite = spawn(STUBBORN, "run-s"), spawn(SLEEPER, "run-s")
    killed = processes.stop(processes.of_run("run-s"), grace_seconds=0.5)
    assert [process.pid for process in killed] == [stubborn.pid]
    assert gone(stubborn)
    assert gone(polite)


def test_the_next_up_clears_what_a_killed_one_left(spawn: Spawn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, other = spawn(SLEEPER, "run-k"), spawn(SLEEPER, "run-other")
    run_file.write(tmp_path, dead_run("run-k"))
    clear_leftovers(tmp_path, Progress())
    assert gone(ours)
    assert not gone(other)
    assert run_file.read(tmp_path) is None
    assert "stopped 1 processes" in capsys.readouterr().out


@pytest.mark.parametrize("joined", ["", "auto"])
def test_the_next_up_leaves_the_files_of_an_haproxy_that_goes_on(tmp_path: Path, haproxy_files: Path, joined: str) -> None:
    """In a Ray that was joined, Serve outlives its supervisor."""
    run_file.write(tmp_path, dead_run("run-h", joined))
    clear_leftovers(tmp_path, Progress())
    assert haproxy_files.exists() == bool(joined)
    assert run_file.read(tmp_path) is None


def test_down_ends_serve_in_a_joined_cluster_whose_supervisor_was_killed(
    tmp_path: Path, haproxy_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch)
    run_file.write(tmp_path, dead_run("run-h", "head:6379").ready("10.0.0.1:6379", "token"))
    assert detached.down(load(None, [f"home={tmp_path}"]))
    assert cluster.asked == ["join head:6379 token", "shutdown", "leave"]
    assert run_file.read(tmp_path) is None
    assert not haproxy_files.exists()


def test_down_says_that_serve_goes_on_where_its_cluster_cannot_be_joined(
    tmp_path: Path, haproxy_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch)
    cluster.away = True
    run_file.write(tmp_path, dead_run("run-h", "head:6379"))
    with pytest.raises(detached.StopFailed, match=r"head:6379 was not stopped.*no such cluster.*serve shutdown -y"):
        detached.down(load(None, [f"home={tmp_path}"]))
    assert run_file.read(tmp_path) is not None, "a second try would not know of it"
    assert haproxy_files.exists()


def test_down_asks_no_cluster_where_ray_was_our_own_or_the_supervisor_ended_in_order(
    spawn: Spawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch)
    run_file.write(tmp_path, dead_run("run-o"))
    assert not detached.down(load(None, [f"home={tmp_path}"]))
    supervisor = spawn(SLEEPER, None)
    since = psutil.Process(supervisor.pid).create_time()
    run_file.write(tmp_path, Run("run-p", supervisor.pid, since, "http://127.0.0.1:1", None, (), joined="auto"))
    assert detached.down(load(None, [f"home={tmp_path}"]))
    assert cluster.asked == []


def test_a_run_is_known_by_its_processs_start_and_not_by_its_pid_alone() -> None:
    run = Run.begin("http://127.0.0.1:1", None, ())
    assert run.lives
    assert not processes.lives_since(os.getpid(), run.started_at - 100)


def test_what_is_written_of_a_run_is_read_again_by_its_owner_only(tmp_path: Path) -> None:
    run = Run.begin("http://127.0.0.1:1", Path("c.yaml"), ("gateway.port=1",)).ready("127.0.0.1:6379", "token")
    run_file.write(tmp_path, run)
    assert run_file.read(tmp_path) == run
    assert (tmp_path / "run.json").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_damaged_run_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"pid": 1')
    assert run_file.read(tmp_path) is None


def test_a_second_supervisor_of_one_home_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    hold = f"""
import time
from pathlib import Path
from cluster import run_file
with run_file.exclusive(Path({str(tmp_path)!r})):
    print("held", flush=True); time.sleep(120)
"""
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout and first.stdout.readline() == "held\n"
        try:
            with pytest.raises(AlreadyRunning, match="lorikeet down"), run_file.exclusive(tmp_path):
                pass
        finally:
            first.kill()
    with run_file.exclusive(tmp_path):
        pass


def test_a_taken_port_names_its_holder() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not ports.is_free("127.0.0.1", port)
        assert not ports.is_free("0.0.0.0", port)
        assert ports.holder(port).pid == os.getpid()
    assert ports.is_free("127.0.0.1", port)


def test_free_ports_are_distinct_and_free() -> None:
    picked = ports.pick_free(5)
    assert len(set(picked)) == 5
    assert all(ports.is_free("0.0.0.0", port) for port in picked)
