"""The adapters' life from the command line, against a gateway's whole app."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.command import Command
from tests.cluster.live_gateway import LiveGateway
from tests.deployments.gateway import KEY

NAME = "acme/support"


@pytest.fixture
def asking(gateway: LiveGateway, lorikeet: Command) -> Command:
    return lambda *words, key=KEY: lorikeet(*words, LORIKEET_BASE_URL=gateway.url, LORIKEET_API_KEY=key)


@pytest.fixture
def push(asking: Command, tmp_path: Path):
    """Pushes a folder with this content; its version."""

    def call(content: str, *words: str, name: str = NAME) -> str:
        folder = tmp_path / f"adapter-{content}"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_text(content)
        done = asking("adapters", "push", str(folder), name, "--json", *words)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["id"].partition("@")[2]

    return call


def shown(asking: Command) -> dict[str, str]:
    return json.loads(asking("adapters", "show", NAME, "--json").stdout)["aliases"]


def test_alias_rollback_and_history(asking: Command, push) -> None:
    one, two = push("one"), push("two")
    assert asking("adapters", "alias", f"{NAME}:staging", one[:8]).stdout == f"{NAME}:staging is now {NAME}@{one}\n"
    assert asking("adapters", "rollback", NAME).stdout == f"{NAME} is back at {NAME}@{one}\n"
    assert shown(asking) == {"production": one, "staging": one}
    assert asking("adapters", "alias", NAME, two).returncode == 0
    assert asking("adapters", "unalias", f"{NAME}:staging").returncode == 0
    assert shown(asking) == {"production": two}
    told = json.loads(asking("adapters", "history", NAME, "--json").stdout)
    assert [move["why"] for move in told] == ["delete_alias", "move", "rollback", "move", "publish", "publish"]
    assert {move["by"]["name"] for move in told} == {"test"}
    lines = asking("adapters", "history", NAME, "--alias", "staging").stdout.splitlines()
    assert [line.split()[2] for line in lines] == ["staging"] * 2


def test_show_tells_the_etag_that_a_change_is_bound_to(asking: Command, push) -> None:
    push("one")
    push("two")
    line = asking("adapters", "show", NAME).stdout.splitlines()[1].split()
    assert line[0] == "etag"
    assert json.loads(asking("adapters", "show", NAME, "--json").stdout)["etag"] == line[1]
    assert asking("adapters", "rollback", NAME, "--if-match", line[1]).returncode == 0
    again = asking("adapters", "rollback", NAME, "--if-match", line[1])
    assert again.returncode == 1 and "changed by somebody else" in again.stderr


def test_canary_shadow_and_their_ends(asking: Command, push) -> None:
    one, two = push("one"), push("two", name=f"{NAME}:beta")
    assert shown(asking) == {"production": one, "beta": two}
    begun = asking("adapters", "canary", NAME, two[:8], "--weight", "12.5", "--requests", "50")
    assert begun.stdout == f"{NAME}: 12.5 % are answered by {NAME}@{two}\n"
    assert asking("adapters", "shadow", NAME, two, "--share", "5").stdout == f"{NAME}: 5 % are copied to {NAME}@{two}\n"
    found = json.loads(asking("adapters", "trial", NAME, "--json").stdout)
    assert (found["canary"]["guard"]["requests"], found["shadow"]["share"]) == (50, 5)
    told = asking("adapters", "trial", NAME).stdout
    assert f"canary {two[:12]} at 12.5 %\n  stable   0 requests, 0 failed\n" in told
    assert "12.5 % of production" in asking("adapters", "show", NAME).stdout
    assert asking("adapters", "shadow", NAME, "--off").returncode == 0
    assert asking("adapters", "shadow", NAME, two).stderr == "lorikeet: give a VERSION and its --share, or --off alone\n"
    assert asking("adapters", "abort", NAME).returncode == 0
    assert "nothing stands beside it" in asking("adapters", "trial", NAME).stdout
    asking("adapters", "canary", NAME, two, "--weight", "1", "--no-guard")
    assert json.loads(asking("adapters", "trial", NAME, "--json").stdout)["canary"]["guard"] is None
    assert asking("adapters", "promote", NAME).stdout == f"{NAME} is now {NAME}@{two}\n"
    assert f"ended the canary of {two[:12]} at 1 %" in asking("adapters", "history", NAME).stdout


def test_warm_by_version_alias_or_name(asking: Command, push) -> None:
    one, two = push("one"), push("two", name=f"{NAME}:beta")
    for name, version in ((NAME, one), (f"{NAME}:beta", two), (f"{NAME}@{two[:8]}", two)):
        assert asking("adapters", "warm", name).stdout == f"warm: {NAME}@{version} on 1 of 1 replicas (from store in 0.8 s)\n"
    told = json.loads(asking("adapters", "warm", NAME, "--replicas", "3", "--json").stdout)
    assert (told["version"], told["replicas"]) == (one, 1)
    gone = asking("adapters", "warm", f"{NAME}:none")
    assert (gone.returncode, "has no alias 'none'" in gone.stderr) == (1, True)


def test_rolling_back_where_nothing_was_before_is_one_line(asking: Command, push) -> None:
    push("one")
    done = asking("adapters", "rollback", NAME)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "no version before" in done.stderr


def test_an_alias_command_refuses_an_exact_version(asking: Command) -> None:
    done = asking("adapters", "rollback", f"{NAME}@{'a' * 64}")
    assert (done.returncode, "give an alias" in done.stderr) == (1, True)


def test_labels_are_set_at_push_changed_and_searched(asking: Command, push) -> None:
    push("one", "--tag", "task=chat", "--tag", "team=search", "--private")
    push("two", name="acme/other")
    assert asking("adapters", "show", NAME).stdout.splitlines()[0] == f"{NAME}  private  task=chat  team=search"
    changed = asking("adapters", "label", NAME, "--tag", "task=sum", "--untag", "team", "--public")
    assert changed.stdout == f"{NAME}  public  task=sum\n"
    for words, found in ((["--tag", "task=sum"], [NAME]), (["--tag", "task=chat"], []), (["--base", "tiny"], ["acme/other", NAME])):
        listed = [json.loads(line) for line in asking("adapters", "ls", "--json", *words).stdout.splitlines()]
        assert [row["id"] for row in listed] == found
    assert "task=sum" in asking("adapters", "ls").stdout
    assert asking("adapters", "ls", "--tag", "task").stderr == "lorikeet: 'task' is no tag: give it as key=value\n"


def test_keys_are_made_for_a_tenant_listed_and_revoked(asking: Command, push) -> None:
    push("one", "--private")
    made = json.loads(asking("keys", "create", "reader", "--tenant", "beta", "--scope", "infer", "--json").stdout)
    assert (made["tenant"], made["scopes"]) == ("beta", ["infer"])
    hidden = asking("adapters", "show", NAME, key=made["key"])
    assert (hidden.returncode, "does not exist" in hidden.stderr) == (1, True)
    listed = {row["name"]: row for row in map(json.loads, asking("keys", "ls", "--json").stdout.splitlines())}
    assert (listed["test"]["scopes"], listed["reader"]["id"], "key" in listed["reader"]) == (["admin"], made["id"], False)
    assert asking("keys", "revoke", made["id"]).returncode == 0
    assert "revoked" in asking("keys", "ls").stdout
    assert asking("keys", "revoke", "0" * 16).returncode == 1


def test_rm_undelete_and_gc(asking: Command, push, tmp_path: Path) -> None:
    one, two = push("one"), push("two")
    assert asking("adapters", "rm", f"{NAME}@{one[:12]}").returncode == 0
    assert asking("adapters", "rm", f"{NAME}@{two}").returncode == 1, "production points at it"
    assert asking("adapters", "undelete", f"{NAME}@{one}").returncode == 0
    assert asking("adapters", "rm", NAME).returncode == 0
    assert asking("adapters", "show", NAME).returncode == 1
    assert asking("adapters", "undelete", NAME).stdout == f"back: {NAME}\n"
    assert shown(asking) == {"production": two}
    asking("adapters", "rm", NAME)
    assert asking("adapters", "gc").stdout.startswith("found 0 pieces")
    dry = asking("adapters", "gc", "--grace-hours", "0").stdout.splitlines()
    assert (len(dry), dry[-1].startswith("found 2 pieces of garbage"), "--yes" in dry[-1]) == (3, True, True)
    assert asking("adapters", "undelete", NAME).returncode == 0, "a dry run removed something"
    asking("adapters", "rm", NAME)
    rows = [json.loads(line) for line in asking("adapters", "gc", "--grace-hours", "0", "--yes", "--json").stdout.splitlines()]
    assert {(row["version"], row["removed"]) for row in rows} == {(one, True), (two, True)}
    assert asking("adapters", "undelete", NAME).returncode == 1
    assert push("one") == one
    assert asking("adapters", "rm", f"{NAME}:production").returncode == 1
