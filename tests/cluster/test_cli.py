"""The `lorikeet` command as a script sees it: output, JSON, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from adapters_store.keys import KeyRing
from adapters_store.objects import open_store
from cluster import run_file
from cluster.ports import pick_free
from cluster.run_file import Run
from tests.cluster.api_server import KEY, ApiServer, api_server
from tests.cluster.command import Command
from tests.deployments import gateway as gateway_app
from tests.deployments.served import served
from tests.hub import hub


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as running:
        yield running


@pytest.fixture
def asking(server: ApiServer, lorikeet: Command) -> Command:
    """The command, with the server and its key in the environment."""
    return lambda *words: lorikeet(*words, LORIKEET_BASE_URL=server.url, LORIKEET_API_KEY=KEY)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_version_and_help(lorikeet: Command) -> None:
    assert lorikeet("--version").stdout.startswith("lorikeet")
    told = lorikeet("--help").stdout
    assert all(command in told for command in ("up", "down", "status", "doctor", "adapters", "keys", "chat"))


@pytest.mark.parametrize("command", ["up", "down", "status", "doctor"])
def test_a_bad_setting_is_one_line_and_exit_code_1(lorikeet: Command, command: str) -> None:
    done = lorikeet(command, "gateway.prt=1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert "did you mean port?" in done.stderr


def test_the_command_runs_as_a_process_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "cluster.cli", "status", "gateway.prt=1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (1, "", False)


def test_a_wrong_option_is_exit_code_2(lorikeet: Command) -> None:
    assert lorikeet("status", "--nothing").returncode == 2


def test_status_and_down_where_nothing_is_up(lorikeet: Command, tmp_path: Path) -> None:
    done = lorikeet("status", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"running": False, "ready": False, "home": str(tmp_path)}
    assert "nothing is up" in lorikeet("down").stdout


@pytest.mark.parametrize("ready", [True, False])
def test_status_tells_what_the_gateway_says(lorikeet: Command, server: ApiServer, tmp_path: Path, ready: bool) -> None:
    server.ready = ready
    run_file.write(tmp_path, Run.begin(server.url, None, ()))
    done = lorikeet("status", "--json")
    report = json.loads(done.stdout)
    assert (report["running"], report["ready"], report["models"]) == (True, ready, {"base": "ready"})
    assert done.returncode == (0 if ready else 1)


def test_down_ends_the_supervisor_of_this_home(lorikeet: Command, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(120)"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdout.readline()
        begun = Run.begin("http://127.0.0.1:1", None, ())
        run_file.write(tmp_path, Run("none", process.pid, psutil.Process(process.pid).create_time(), begun.url, None, ()))
        assert lorikeet("down").stdout == "stopped\n"
        assert process.wait(10) == -signal.SIGTERM
    assert run_file.read(tmp_path) is None


def test_doctor_answers_in_json(lorikeet: Command) -> None:
    done = lorikeet("doctor", "--json", f"gateway.port={pick_free(1)[0]}")
    checks = {check["name"]: check["state"] for check in json.loads(done.stdout)}
    assert checks["store"] == "ok"
    assert done.returncode == (1 if "fail" in checks.values() else 0)


def test_push_ls_and_show(lorikeet: Command, adapter: Path, tmp_path: Path) -> None:
    """Over a real gateway: what is pushed is what is listed and shown."""
    with served(tmp_path / "gateway") as gateway:
        environment = {"LORIKEET_BASE_URL": gateway.url, "LORIKEET_API_KEY": gateway_app.KEY}
        pushed = lorikeet("adapters", "push", str(adapter), "acme/support", "--json", **environment)
        said = json.loads(pushed.stdout)
        name, _, version = said["id"].partition("@")
        assert (name, said["base"], said["rank"], said["size_bytes"], said["created"]) == ("acme/support", gateway_app.BASE, 8, 9, True)
        assert pushed.stderr == "", "no progress bar where nobody looks"
        assert lorikeet("adapters", "push", str(adapter), "acme/support").stdout.startswith("unchanged: acme/support@")
        listed = lorikeet("adapters", "ls", "--json").stdout.splitlines()
        assert [json.loads(line)["id"] for line in listed] == ["acme/support"]
        assert "acme/support" in lorikeet("adapters", "ls").stdout
        assert "production" in lorikeet("adapters", "show", "acme/support").stdout
        assert json.loads(lorikeet("adapters", "show", "acme/support", "--json").stdout)["aliases"] == {"production": version}


def test_import_publishes_what_the_server_fetches(lorikeet: Command, adapter: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "acme" / "support"
    repository.parent.mkdir(parents=True)
    adapter.rename(repository)
    with hub(tmp_path / "hub") as hub_url, served(tmp_path / "gateway", imports={"hub_url": hub_url}) as gateway:
        environment = {"LORIKEET_BASE_URL": gateway.url, "LORIKEET_API_KEY": gateway_app.KEY}
        said = json.loads(lorikeet("adapters", "import", "hf://acme/support@v1", "acme/imported", "--json", **environment).stdout)
        assert (said["id"].partition("@")[0], said["created"]) == ("acme/imported", True)
        assert lorikeet("adapters", "import", "hf://acme/support", "acme/imported").stdout.startswith("unchanged: acme/imported@")
        refused = lorikeet("adapters", "import", "s3://other/bucket", "acme/imported")
        assert refused.returncode == 1 and "imports.buckets" in refused.stderr


@pytest.mark.parametrize("name", ["support", "acme/support@92747eca", "a b/c"])
def test_push_under_a_name_that_is_none_is_refused(asking: Command, adapter: Path, name: str) -> None:
    done = asking("adapters", "push", str(adapter), name)
    assert done.returncode == 1
    assert "owner/name" in done.stderr or "not valid" in done.stderr


def test_a_refusal_of_the_server_is_one_line(asking: Command) -> None:
    done = asking("adapters", "show", "acme/none")
    assert (done.returncode, done.stderr) == (1, "lorikeet: there is no adapter acme/none\n")


def test_without_a_server_the_command_says_how_to_get_one(lorikeet: Command) -> None:
    done = lorikeet("adapters", "ls")
    assert done.returncode == 1
    assert "lorikeet up" in done.stderr


def test_server_and_key_come_from_the_run_here(lorikeet: Command, server: ApiServer, tmp_path: Path) -> None:
    run_file.write(tmp_path, Run.begin(server.url, None, ()))
    (tmp_path / "api_key").write_text(KEY + "\n")
    assert lorikeet("adapters", "ls").returncode == 0


def test_chat_streams_an_answer(asking: Command) -> None:
    assert asking("chat", "-m", "base", "good day").stdout == "You said: good day\n"
    assert asking("chat", "-m", "other", "good day").stderr == "lorikeet: there is no model other\n"


def test_keys_create_issues_a_key_in_the_store(lorikeet: Command, tmp_path: Path) -> None:
    made = json.loads(lorikeet("keys", "create", "ci", "--tenant", "acme", "--json").stdout)
    record = KeyRing(open_store((tmp_path / "store").as_uri())).find(made["key"])
    assert record is not None
    assert (record.id, record.name, record.tenant) == (made["id"], "ci", "acme")
