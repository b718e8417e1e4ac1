"""Settings as Serve's own configuration: its schema, and the applications that its builders make of it."""

from __future__ import annotations

from typing import Any

import pytest
from ray._common.utils import import_attr
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from configs.load import load
from configs.settings import Settings, SharedSettings
from deployments.identity import gateway_arguments, replica_arguments, version_of
from deployments.names import GATEWAY, REPLICA
from deployments.serve_config import serve_config

TWO = (
    "models=[{id: a, source: /a}, {id: org/b, source: /b, resources: {gpus: 2, tensor_parallel: 2}}]",
    "demo_adapters=false",
    "gateway.replicas=2",
)


def applications(*words: str) -> dict[str, dict[str, Any]]:
    return {application["name"]: application for application in serve_config(load(None, [*TWO, *words]))["applications"]}


def built(application: dict[str, Any]) -> Any:
    """The deployment that Serve makes of an application, as its controller does."""
    app = call_user_app_builder_with_args_if_necessary(import_attr(application["import_path"]), application["args"])
    return app._bound_deployment


def test_serve_takes_it() -> None:
    schema = ServeDeploySchema.model_validate(serve_config(load(None, TWO)))
    assert [app.name for app in schema.applications] == ["model-a", "model-org--b", "lorikeet"]
    assert schema.proxy_location == "HeadOnly"


def test_the_builders_make_what_lorikeet_up_would() -> None:
    apps = applications()
    model = built(apps["model-org--b"])
    assert (model.name, [bundle["GPU"] for bundle in model._replica_config.placement_group_bundles]) == (REPLICA, [1.0, 1.0])
    assert model.init_kwargs["model_id"] == "org/b"
    gateway = built(apps["lorikeet"])
    assert gateway.name == GATEWAY
    assert isinstance(gateway.init_kwargs["settings"], SharedSettings)
    assert gateway.init_kwargs["watch"] is False, "Serve tells it its models, there is no record"


def test_what_serve_overrides_is_there_to_be_overridden() -> None:
    for application in applications().values():
        [override] = application["deployments"]
        assert built(application).name == override["name"]


@pytest.mark.parametrize(
    "word",
    ["models.0.autoscaling.max_replicas=3", "models.0.max_requests_at_once=7", "models.0.startup_timeout_seconds=60", "gateway.replicas=5"],
)
def test_what_changes_in_place_restarts_nothing(word: str) -> None:
    before, after = applications(), applications(word)
    assert {name: app["args"] for name, app in before.items()} == {name: app["args"] for name, app in after.items()}


def test_another_model_is_news_to_the_gateways_and_restarts_nothing() -> None:
    before, after = applications(), applications("models=[{id: a, source: /a}]")
    assert set(before) - set(after) == {"model-org--b"}
    assert before["lorikeet"]["args"] == after["lorikeet"]["args"]
    assert [model["id"] for model in after["lorikeet"]["deployments"][0]["user_config"]["models"]] == ["a"]


def identities(*words: str) -> tuple[str, str, str]:
    """The versions of the gateways and of both models' replicas."""
    settings = load(None, [*TWO, *words])
    return (version_of(gateway_arguments(settings)), *(version_of(replica_arguments(settings, model)) for model in settings.models))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("word", "changed"),
    [
        ("models.0.engine.max_model_len=512", (False, True, False)),
        ("models.0.lora.max_rank=32", (False, True, False)),
        ("models.0.names=[c]", (False, True, False)),
        ("models.0.autoscaling.max_replicas=3", (False, False, False)),
        ("gateway.replicas=9", (False, False, False)),
        ("gateway.request_timeout_seconds=9", (True, False, False)),
        ("cache.max_bytes=9", (False, True, True)),
        ("store.lease_seconds=2", (True, True, True)),
        ("ray.address=auto", (False, False, False)),
    ],
)
def test_what_is_built_from_what(word: str, changed: tuple[bool, bool, bool]) -> None:
    assert tuple(before != after for before, after in zip(identities(), identities(word), strict=True)) == changed


def test_the_record_is_read_as_it_was_written() -> None:
    from deployments.record import Deployed

    settings = load(None, TWO)
    assert isinstance(settings, Settings)
    whole = Deployed.whole(settings)
    assert Deployed.from_json(whole.to_json()) == whole
    part = Deployed(settings, frozenset({"org/b"}), frozenset({"a"}))
    assert [model.id for model in Deployed.from_json(part.to_json()).served] == ["org/b"]
