"""What state a base model is in, from what Serve's controller says of its application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.schema import ApplicationStatus, DeploymentStatus

from deployments import readiness
from deployments.names import REPLICA, app_of
from deployments.readiness import Readiness, model_states


class Controller:
    """Stands for `serve` in the module: tells of the applications it is given."""

    def __init__(self) -> None:
        self.applications: dict[str, Any] = {}
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()

    def status(self) -> Any:
        self.asked += 1
        assert self.gate.wait(10)
        return self

    def put(self, model: str, status: ApplicationStatus, *, running: int = 0, deployment: DeploymentStatus | None = None) -> None:
        replica = SimpleNamespace(replica_states={"RUNNING": running} if running else {}, status=deployment)
        deployments = {REPLICA: replica} if deployment else {}
        self.applications[app_of(model)] = SimpleNamespace(status=status, deployments=deployments)


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    controller = Controller()
    monkeypatch.setattr(readiness, "serve", controller)
    return controller


@pytest.fixture
async def asking(controller: Controller) -> AsyncIterator[Readiness]:
    threads = ThreadPoolExecutor(2)
    yield Readiness(["llama"], threads)
    controller.gate.set()
    threads.shutdown(wait=True)


APP, DEPLOYMENT = ApplicationStatus, DeploymentStatus


@pytest.mark.parametrize(
    ("status", "deployment", "running", "state"),
    [
        (APP.RUNNING, DEPLOYMENT.HEALTHY, 1, "ready"),
        (APP.RUNNING, DEPLOYMENT.HEALTHY, 0, "asleep"),
        (APP.RUNNING, DEPLOYMENT.UPSCALING, 0, "starting"),
        (APP.DEPLOYING, DEPLOYMENT.UPDATING, 0, "starting"),
        (APP.DEPLOYING, DEPLOYMENT.UPDATING, 1, "ready"),
        (APP.DEPLOYING, None, 0, "starting"),
        (APP.UNHEALTHY, DEPLOYMENT.UNHEALTHY, 0, "unhealthy"),
        (APP.UNHEALTHY, DEPLOYMENT.UNHEALTHY, 1, "ready"),  # another of its replicas answers
        (APP.DEPLOY_FAILED, DEPLOYMENT.UNHEALTHY, 0, "failed"),
        (APP.DELETING, None, 0, "stopping"),
    ],
)
def test_state_of_a_model(
    controller: Controller, status: ApplicationStatus, deployment: DeploymentStatus | None, running: int, state: str
) -> None:
    controller.put("org/llama", status, running=running, deployment=deployment)
    assert model_states(["org/llama"]) == {"org/llama": state}


def test_a_model_that_serve_does_not_know_is_absent(controller: Controller) -> None:
    assert model_states(["llama"]) == {"llama": "absent"}


async def test_the_controller_is_asked_once_a_second(controller: Controller, asking: Readiness, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(readiness, "time", SimpleNamespace(monotonic=lambda: now))
    controller.put("llama", APP.RUNNING, running=1, deployment=DEPLOYMENT.HEALTHY)
    for _ in range(5):
        assert await asking() == {"llama": "ready"}
    assert controller.asked == 1
    now += 1.1
    await asking()
    assert controller.asked == 2


async def test_those_who_ask_together_share_one_answer(controller: Controller, asking: Readiness) -> None:
    controller.put("llama", APP.RUNNING, running=1, deployment=DEPLOYMENT.HEALTHY)
    controller.gate.clear()
    tasks = [asyncio.create_task(asking()) for _ in range(10)]
    await asyncio.sleep(0.05)
    controller.gate.set()
    assert await asyncio.gather(*tasks) == [{"llama": "ready"}] * 10
    assert controller.asked == 1


async def test_a_controller_that_does_not_answer_makes_models_unknown(
    controller: Controller, asking: Readiness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_TIMEOUT_SECONDS", 0.05)
    controller.gate.clear()
    assert await asking() == {"llama": "unknown"}
    assert await asking() == {"llama": "unknown"}
    assert controller.asked == 1, "each request waits in a thread of its own"
    controller.put("llama", APP.RUNNING, running=1, deployment=DEPLOYMENT.HEALTHY)
    controller.gate.set()
    async with asyncio.timeout(10):
        while await asking() != {"llama": "ready"}:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_controller_that_fails_is_asked_again(controller: Controller, asking: Readiness) -> None:
    controller.applications = None  # type: ignore[assignment]
    assert await asking() == {"llama": "unknown"}
    controller.applications = {}
    assert await asking() == {"llama": "absent"}
