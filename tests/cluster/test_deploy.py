"""`lorikeet deploy` as far as it needs no cluster: what it shows and how it refuses. The rest: tests/system/test_deploy.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster import run_file
from cluster.deploy import as_json, deploy, describe
from cluster.progress import Progress
from cluster.run_file import Run
from configs.load import ConfigError, load
from deployments.plan import Change, FieldChange, Plan

PLAN = Plan(
    (
        Change("remove", "old"),
        Change("change", "quick", (FieldChange("autoscaling.max_replicas", 1, 4),)),
        Change("change", "slow", (FieldChange("environment.HF_TOKEN", "one", "two"),), restarts=True),
        Change("change", "half"),
        Change("add", "new"),
    ),
    gateways=(1, 2),
)


def test_the_difference_is_shown_by_model_and_field() -> None:
    assert describe(PLAN).splitlines() == [
        "- old",
        "~ quick (in place)",
        "    autoscaling.max_replicas: 1 -> 4",
        "~ slow (replicas are replaced)",
        "    environment.HF_TOKEN: (hidden) -> (hidden)",
        "~ half (a deploy of it did not finish)",
        "+ new",
        "~ gateways (in place)",
        "    gateway.replicas: 1 -> 2",
    ]
    assert describe(Plan(())) == "nothing to change"


def test_scripts_get_the_same_without_secrets() -> None:
    told = as_json(PLAN, applied=True)
    assert [(change["change"], change["model"], change["restarts"]) for change in told["changes"]] == [
        ("remove", "old", False), ("change", "quick", False), ("change", "slow", True), ("change", "half", False), ("add", "new", False),
    ]  # fmt: skip
    assert told["changes"][1]["fields"] == [{"path": "autoscaling.max_replicas", "old": "1", "new": "4"}]
    assert (told["gateways"], told["applied"]) == ({"old": 1, "new": 2}, True)
    assert "two" not in json.dumps(told)


def test_without_a_running_cluster_it_says_how_to_get_one(tmp_path: Path) -> None:
    settings = load(None, [f"home={tmp_path}"])
    with pytest.raises(ConfigError, match="lorikeet up"):
        deploy(settings, lambda _: True, Progress())
    run_file.write(tmp_path, Run("none", 1 << 22, 1.0, "http://127.0.0.1:1", None, (), 1.0, "127.0.0.1:1"))
    with pytest.raises(ConfigError, match="lorikeet up"):  # a run that has died
        deploy(settings, lambda _: True, Progress())
