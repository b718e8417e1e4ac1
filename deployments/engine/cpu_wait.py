"""Waiting without spinning on the CPU: part of Lorikeet's vLLM plugin (`plugin.py`).

On its CPU backend vLLM runs an engine as two processes that hand each step to one another through shared memory. Whoever waits there
calls `sched_yield` in a loop for a second after each read, which under load is always: up to a core for every engine, taken from the
model, the gateway and other engines. With cores to spare, as beside a GPU, that buys microseconds; on a machine whose cores compute, it
costs far more than it buys (docs/decisions/0016). vLLM's writers also send a notification with each message, which readers go by once
nothing has come for that second; here they go by it from the first. On other platforms nothing changes.
"""

from __future__ import annotations

import functools
import time

# ZeroMQ drops a notification where the one before has only just been sent, as it counts that one as still waiting. vLLM never sleeps so
# soon after a read; here the buffer is looked at again after so long.
_LOOK_AGAIN_MILLISECONDS = 1


def register() -> None:
    """Wrap how a reader waits; once per process. Does nothing on other platforms."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    import zmq
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    if getattr(SpinCondition, "sleeps_at_once", False):
        return
    wait_idle = SpinCondition.wait

    @functools.wraps(wait_idle)
    def wait(condition: SpinCondition, timeout_ms: int | None = None) -> None:
        if time.monotonic() > condition.last_read + condition.busy_loop_s:
            wait_idle(condition, timeout_ms)
            return
        events = dict(condition.poller.poll(timeout=_LOOK_AGAIN_MILLISECONDS))
        if condition.local_notify_socket in events:
            condition.local_notify_socket.recv(flags=zmq.NOBLOCK, copy=False)

    SpinCondition.wait = wait  # type: ignore[method-assign, assignment]
    SpinCondition.sleeps_at_once = True  # type: ignore[attr-defined]
