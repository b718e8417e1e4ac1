"""An engine's process that waits for another sleeps, and is woken by what the other writes."""

from __future__ import annotations

import threading
import time

import pytest
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition

from deployments.engine import cpu_wait

WAIT_SECONDS = 0.5  # within the second for which vLLM spins after a read
TIMEOUT_SECONDS = 4.0  # one message that a reader slept through would take it 5 s
EXCHANGES = 500


@pytest.fixture
def remedied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin registered, as in a vLLM process on the CPU; undone afterwards."""
    monkeypatch.setattr(SpinCondition, "wait", SpinCondition.wait)
    monkeypatch.setattr(SpinCondition, "sleeps_at_once", False, raising=False)
    cpu_wait.register()


def connected() -> tuple[MessageQueue, MessageQueue]:
    """A writer and its only reader."""
    writer = MessageQueue(n_reader=1, n_local_reader=1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    ready = threading.Thread(target=writer.wait_until_ready)
    ready.start()
    reader.wait_until_ready()
    ready.join()
    return writer, reader


def waited_for() -> tuple[object, float]:
    """What a reader is told half a second after a first message, and the CPU seconds that its thread spent waiting for it."""
    writer, reader = connected()
    writer.enqueue("first")
    assert reader.dequeue(timeout=TIMEOUT_SECONDS) == "first"
    later = threading.Timer(WAIT_SECONDS, writer.enqueue, ["second"])
    later.start()
    began = time.thread_time()
    told = reader.dequeue(timeout=TIMEOUT_SECONDS)
    return told, time.thread_time() - began


def test_a_reader_sleeps_until_it_is_told(remedied: None) -> None:
    told, cpu_seconds = waited_for()
    assert told == "second"
    assert cpu_seconds < WAIT_SECONDS / 5


def test_without_it_a_reader_spins() -> None:
    """When this fails, vLLM has been mended: drop deployments/engine/cpu_wait.py."""
    told, cpu_seconds = waited_for()
    assert told == "second"
    assert cpu_seconds > WAIT_SECONDS / 5


def test_messages_that_come_close_together_are_not_waited_for(remedied: None) -> None:
    """Each is written as soon as the one before is read: the notification of some is dropped."""
    writer, reader = connected()
    back_writer, back_reader = connected()

    def answer() -> None:
        for _ in range(EXCHANGES):
            back_writer.enqueue(reader.dequeue(timeout=TIMEOUT_SECONDS))

    answering = threading.Thread(target=answer)
    answering.start()
    began = time.monotonic()
    for number in range(EXCHANGES):
        writer.enqueue(number)
        assert back_reader.dequeue(timeout=TIMEOUT_SECONDS) == number
    answering.join()
    assert time.monotonic() - began < TIMEOUT_SECONDS


def test_on_other_platforms_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        def is_cpu(self) -> bool:
            return False

    monkeypatch.setattr("vllm.platforms.current_platform", Gpu())
    before = SpinCondition.wait
    cpu_wait.register()
    assert SpinCondition.wait is before
