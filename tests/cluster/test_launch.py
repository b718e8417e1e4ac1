"""What `lorikeet up` does before and after serving: the key, the environment, the welcome, the background log."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapters_store.keys import KeyRing
from adapters_store.objects import ObjectStore, open_store
from cluster import detached, launch, ray_node
from cluster.doctor import CheckFailed
from cluster.keys import BadKey, first_key
from cluster.progress import Progress
from cluster.welcome import welcome
from configs.load import load


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets is gone after it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in [name for name in os.environ if name.startswith(("LORIKEET_", "RAY_SERVE_"))]:
        monkeypatch.delenv(name)


def test_the_first_key_is_made_once_and_kept_private(tmp_path: Path, store: ObjectStore) -> None:
    secret = first_key(tmp_path, store)
    assert (tmp_path / "api_key").read_text() == secret + "\n"
    assert (tmp_path / "api_key").stat().st_mode & 0o777 == 0o600
    assert first_key(tmp_path, store) == secret
    assert KeyRing(store).find(secret) is not None
    assert len(KeyRing(store).list()) == 1


def test_a_preset_key_is_issued_and_not_written_down(tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LORIKEET_API_KEY", "preset-key-1234")
    assert first_key(tmp_path, store) == "preset-key-1234"
    assert KeyRing(store).find("preset-key-1234") is not None
    assert not (tmp_path / "api_key").exists()


@pytest.mark.parametrize("preset", ["short", "with a space in it", "schlüssel-schlüssel"])
def test_a_preset_that_cannot_be_a_key_is_refused_without_repeating_it(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    monkeypatch.setitem(os.environ, "LORIKEET_API_KEY", preset)
    with pytest.raises(BadKey) as caught:
        first_key(tmp_path, store)
    assert preset not in str(caught.value)


def test_the_environment_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RAY_SERVE_HAPROXY_STATS_PORT", "18404")
    for name in [name for name in sys.modules if name == "ray.serve"]:
        monkeypatch.delitem(sys.modules, name)
    set_ones = ray_node.set_environment("0123456789abcdef", {"RAY_SERVE_ENABLE_HA_PROXY": "1"})
    assert os.environ["RAY_SERVE_HAPROXY_STATS_PORT"] == "18404"
    assert "RAY_SERVE_HAPROXY_STATS_PORT" not in set_ones
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert os.environ["RAY_SERVE_HAPROXY_METRICS_PORT"] != "9101"


def test_the_haproxy_socket_fits_into_a_unix_socket_path() -> None:
    socket = ray_node.haproxy_folder("0123456789abcdef") / ("n" * 56) / "admin.sock.1234567.tmp"
    assert len(str(socket)) < 107


def test_nothing_of_serve_is_imported_before_its_environment_is_set() -> None:
    code = "import sys, cluster.cli, cluster.launch; sys.exit('ray' in sys.modules or 'vllm' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(launch.__file__).parent.parent, check=False).returncode == 0


def test_a_failed_check_leaves_the_home_as_it_was(tmp_path: Path) -> None:
    words = (f"home={tmp_path}", "models.0.resources.gpus=512", "models.0.resources.tensor_parallel=512", f"gateway.port={launch_port()}")
    with pytest.raises(CheckFailed, match="512 needed"):
        in_a_process_of_its_own(words)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.lock"]


def test_the_printed_commands_are_whole() -> None:
    text = welcome(load(), "http://127.0.0.1:8000", "lk-it's", ("demo/json", "demo/pirate"), "/logs")
    commands = [part.replace("\\\n", " ") for part in text.split("\n\n") if part.startswith("curl")]
    models = ["smollm2-135m", "demo/pirate", "demo/pirate"]
    for command, model in zip(commands, models, strict=True):
        words = shlex.split(command)
        assert "Authorization: Bearer lk-it's" in words
        assert f'"model": "{model}"' in words[-1]
    assert '"stream": true' in commands[-1]


def test_without_demo_adapters_only_the_base_is_asked() -> None:
    assert welcome(load(), "http://127.0.0.1:8000", "key-key-key", (), "/logs").count("curl ") == 2


def test_a_start_in_the_background_that_fails_says_where_its_log_is(tmp_path: Path) -> None:
    shown: list[str] = []
    with pytest.raises(detached.StartFailed, match=r"up\.log"):
        detached.start(tmp_path, ["gateway.prt=1"], timeout_seconds=60, show=shown.append)
    assert "did you mean port?" in "".join(shown)


def test_long_steps_repeat_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(repeat_seconds=0.05)
    deadline = time.monotonic() + 5
    seen = ""
    with progress.step("Working"):
        while "still working" not in seen and time.monotonic() < deadline:
            seen += capsys.readouterr().out
            time.sleep(0.01)
    assert "still working" in seen
    assert "done in" in capsys.readouterr().out


def launch_port() -> int:
    from cluster.ports import pick_free

    return pick_free(1)[0]


def in_a_process_of_its_own(words: tuple[str, ...]) -> None:
    """`up` sets signal handlers, so it gets its own process; its refusal is raised here again."""
    command = [sys.executable, "-m", "cluster.cli", "up", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=Path(launch.__file__).parent.parent)
    if done.returncode:
        raise CheckFailed(done.stderr)


def test_a_stop_step_is_bounded_and_its_failure_is_not_ours() -> None:
    assert ray_node.within(5.0, "quick", lambda: None)
    assert not ray_node.within(0.05, "hangs", lambda: time.sleep(2.0))
    assert not ray_node.within(5.0, "fails", lambda: exec("raise OSError"))
