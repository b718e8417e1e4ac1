"""What a deploy would change: each model, each field, and whether its replicas are replaced."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from configs.load import load
from configs.settings import Settings
from deployments.plan import Change, FieldChange, NotChangeable, Plan, plan_of
from deployments.record import Deployed

A: dict[str, Any] = {"id": "a", "source": "/a", "engine": {"max_model_len": 512}, "environment": {"HF_TOKEN": "secret-one"}}
B: dict[str, Any] = {"id": "b", "source": "/b"}
C: dict[str, Any] = {"id": "c", "source": "/c"}


def settings(*models: dict[str, Any], words: tuple[str, ...] = ()) -> Settings:
    tree = load(None, words).model_dump()
    return Settings.model_validate({**tree, "models": models})


def plan(before: Settings | Deployed, after: Settings) -> Plan:
    return plan_of(before if isinstance(before, Deployed) else Deployed.whole(before), after)


def test_the_same_again_changes_nothing() -> None:
    assert plan(settings(A, B), settings(A, B)).empty
    assert plan(settings(A, B), settings(B, A)).empty, "the order of the list says nothing"


def test_removals_come_first_then_changes_then_additions() -> None:
    changed = {**B, "max_requests_at_once": 9}
    assert [(change.kind, change.model) for change in plan(settings(A, B), settings(C, changed)).changes] == [
        ("remove", "a"), ("change", "b"), ("add", "c"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "path", "restarts"),
    [
        ({"autoscaling": {"max_replicas": 3}}, "autoscaling.max_replicas", False),
        ({"autoscaling": {"surge_percent": 100}}, "autoscaling.surge_percent", False),
        ({"max_requests_at_once": 9}, "max_requests_at_once", False),
        ({"startup_timeout_seconds": 9.0}, "startup_timeout_seconds", False),
        ({"engine": {"max_model_len": 256}}, "engine.max_model_len", True),
        ({"engine": {"max_model_len": 512, "dtype": "half"}}, "engine.dtype", True),
        ({"lora": {"max_rank": 32}}, "lora.max_rank", True),
        ({"resources": {"cpus": 2.0}}, "resources.cpus", True),
        ({"source": "/other"}, "source", True),
        ({"names": ("x",)}, "names", True),
        ({"environment": {"HF_TOKEN": "secret-two"}}, "environment.HF_TOKEN", True),
    ],
)
def test_a_change_names_its_field_and_says_whether_replicas_are_replaced(field: dict[str, Any], path: str, restarts: bool) -> None:
    [change] = plan(settings(A, B), settings({**A, **field}, B)).changes
    assert (change.kind, change.model, change.restarts) == ("change", "a", restarts)
    assert [entry.path for entry in change.fields] == [path]


def test_both_values_are_shown_and_secrets_are_not() -> None:
    [change] = plan(settings(A), settings({**A, "engine": {}, "environment": {"HF_TOKEN": "secret-two"}})).changes
    shown = {entry.path: entry.shown() for entry in change.fields}
    assert shown == {"engine.max_model_len": ("512", "(not set)"), "environment.HF_TOKEN": ("(hidden)", "(hidden)")}


def test_gateways_change_in_number() -> None:
    found = plan(settings(A), settings(A, words=("gateway.replicas=3",)))
    assert (found.changes, found.gateways, found.empty) == ((), (1, 3), False)


@pytest.mark.parametrize("word", ["store.lease_seconds=2", "gateway.port=1234", "home=/elsewhere", "cache.max_bytes=5"])
def test_what_all_processes_share_is_refused_by_name(word: str) -> None:
    path, _, value = word.partition("=")
    with pytest.raises(NotChangeable, match=rf"{path} .*-> {value}"):
        plan(settings(A), settings(A, words=(word,)))


@pytest.mark.parametrize("word", ["ray.address=auto", "demo_adapters=false"])
def test_what_only_the_start_reads_is_no_difference(word: str) -> None:
    assert plan(settings(A), settings(A, words=(word,))).empty


def test_what_a_deploy_left_unfinished_is_taken_up_again() -> None:
    whole = Deployed.whole(settings(A, B))
    changing = dataclasses.replace(whole, unsettled=frozenset({"a"}))
    assert plan(changing, settings(A, B)).changes == (Change("change", "a"),)
    adding = dataclasses.replace(whole, announced=frozenset({"a"}), unsettled=frozenset({"b"}))
    assert plan(adding, settings(A, B)).changes == (Change("add", "b"),)
    assert plan(adding, settings(A)).changes == (Change("remove", "b"),)


def test_the_former_settings_of_a_model_that_failed_are_a_change_back() -> None:
    broken = {**A, "engine": {"max_model_len": -1}}
    failed = dataclasses.replace(Deployed.whole(settings(broken)), unsettled=frozenset({"a"}))
    assert plan(failed, settings(A)).changes == (Change("change", "a", (FieldChange("engine.max_model_len", -1, 512),), restarts=True),)
