"""Adapters inside vLLM's worker: read in a thread, entered between steps. The manager is a fake with vLLM's names."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.engine.read_orders import ReadOrders
from deployments.engine.worker import LoraModules

BOUND_SECONDS = 10.0


class Held:
    """Stands for vLLM's LoRAModelManager."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._registered_adapters: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._registered_adapters)

    def remove_oldest_adapter(self) -> bool:
        self._registered_adapters.popitem(last=False)
        return True

    def _create_merged_loras_inplace(self, lora: Any) -> None:
        lora.packed_in = threading.current_thread()


class Manager:
    """Stands for vLLM's worker manager: reading waits for `gate`."""

    def __init__(self, capacity: int) -> None:
        self._adapter_manager = Held(capacity)
        self.gate = threading.Event()
        self.gate.set()

    def _load_adapter(self, request: Any) -> Any:
        assert self.gate.wait(BOUND_SECONDS)
        if request.lora_path == "/damaged":
            raise ValueError("no safetensors")
        return SimpleNamespace(id=request.lora_int_id, name=request.lora_name, path=request.lora_path)

    def list_adapters(self) -> set[int]:
        return set(self._adapter_manager._registered_adapters)

    def remove_adapter(self, number: int) -> bool:
        return self._adapter_manager._registered_adapters.pop(number, None) is not None


class Worker(LoraModules):
    def __init__(self, capacity: int = 4) -> None:
        self.manager = Manager(capacity)
        self.model_runner = SimpleNamespace(lora_manager=self.manager)
        self.device = SimpleNamespace(type="cpu")


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.manager.gate.set()
    worker._lorikeet_reading().threads.shutdown()


def read_and_enter(worker: Worker, number: int, path: str) -> None:
    worker._lorikeet_read(f"acme/a{number}@1", number, path).exception(BOUND_SECONDS)
    worker.lorikeet_enter_adapter(number)


def test_reading_does_not_hold_the_steps_and_only_what_was_read_is_entered(worker: Worker) -> None:
    worker.manager.gate.clear()
    read = worker._lorikeet_read("acme/a@1", 1, "/a")  # returns, though nothing can be read
    assert not read.done()
    worker.manager.gate.set()
    read.result(BOUND_SECONDS)
    assert worker.manager.list_adapters() == set(), "it is the loop's to enter it"
    worker.lorikeet_enter_adapter(1)
    entered = worker.manager._adapter_manager._registered_adapters[1]
    assert (entered.id, entered.name, entered.path) == (1, "acme/a@1", "/a")
    assert entered.packed_in is not threading.current_thread(), "packing is work too: not between steps"


def test_several_are_read_and_each_is_entered_under_its_own_number(worker: Worker) -> None:
    reads = [worker._lorikeet_read(f"acme/a{number}@1", number, f"/a{number}") for number in (1, 2, 3)]
    for read in reads:
        read.result(BOUND_SECONDS)
    for number in (3, 1, 2):
        worker.lorikeet_enter_adapter(number)
    assert {number: lora.path for number, lora in worker.manager._adapter_manager._registered_adapters.items()} == {
        1: "/a1",
        2: "/a2",
        3: "/a3",
    }


def test_what_is_still_being_read_or_was_never_ordered_is_not_entered(worker: Worker) -> None:
    worker.manager.gate.clear()
    worker._lorikeet_read("acme/a@1", 1, "/a")
    with pytest.raises(TimeoutError):
        worker.lorikeet_enter_adapter(1)
    with pytest.raises(KeyError, match="2"):
        worker.lorikeet_enter_adapter(2)
    assert worker.manager.list_adapters() == set()


def test_the_oldest_makes_room(worker: Worker) -> None:
    for number in range(1, 7):
        read_and_enter(worker, number, "/a")
    assert worker.manager.list_adapters() == {3, 4, 5, 6}


def test_while_adapters_are_read_steps_get_the_interpreter_sooner_and_afterwards_as_before(worker: Worker) -> None:
    before = sys.getswitchinterval()
    worker.manager.gate.clear()
    reads = [worker._lorikeet_read("acme/a@1", number, "/a") for number in (1, 2)]
    worker.lorikeet_forget_adapter(1)
    assert sys.getswitchinterval() < before
    worker.manager.gate.set()
    reads[1].result(BOUND_SECONDS)
    worker.lorikeet_enter_adapter(2)
    assert sys.getswitchinterval() == before


def test_what_cannot_be_read_is_told_to_the_one_who_enters_it(worker: Worker) -> None:
    with pytest.raises(ValueError, match="no safetensors"):
        read_and_enter(worker, 1, "/damaged")
    assert worker.manager.list_adapters() == set()


def test_a_read_that_nobody_wants_any_more_is_not_entered(worker: Worker) -> None:
    worker.manager.gate.clear()
    worker._lorikeet_read("acme/a@1", 1, "/a")
    worker.lorikeet_forget_adapter(1)
    worker.manager.gate.set()
    with pytest.raises(KeyError):
        worker.lorikeet_enter_adapter(1)


async def test_replica_orders_what_its_worker_reads(worker: Worker, tmp_path: Path) -> None:
    orders = await ReadOrders.connect([worker.lorikeet_take_orders(str(tmp_path))])
    async with asyncio.timeout(BOUND_SECONDS):
        assert await asyncio.gather(orders.read("acme/a@1", 1, "/a"), orders.read("acme/b@1", 2, "/damaged")) == [True, False]
    worker.lorikeet_enter_adapter(1)
    assert worker.manager.list_adapters() == {1}
    orders.close()
