"""Inside vLLM's worker: what Lorikeet asks of it. vLLM mixes this class into its own (`worker_extension_cls`).

Method names are prefixed: they live among vLLM's own. Those without an underscore are called by the engine's loop, between two steps, so
each must be short.

**Adapters are read beside the steps.** vLLM's own `add_lora` reads, converts and packs the weights in the engine's loop: every running
stream stands still meanwhile, and several loads that come together hold it for all of them. Here a thread does that work, with vLLM's own
code, as soon as the replica orders it (`read_orders.py`), and the loop only enters the result among the adapters that the engine holds:

    order ──▶ a thread: vLLM's _load_adapter, then its packing ──▶ replica ──▶ enter_adapter: into vLLM's CPU cache, between two steps;
                                                                                the request follows, and a step after it runs it

What is entered is what vLLM itself would have entered. An adapter that its CPU cache has dropped since is read again by vLLM, from the
same folder.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from deployments.engine.read_orders import OrderDesk
from deployments.interpreter import HAND_OVER_SECONDS

_READERS = 2  # adapters read at once: they share the interpreter with the steps


class LoraModules:
    """Tells which modules the model's LoRA manager adapts, and brings adapters to it."""

    model_runner: Any
    device: Any

    def lorikeet_adaptable_modules(self) -> list[str]:
        """Module names as adapters write them (q_proj, …): packed ones (qkv_proj) by their parts; none where there is no model."""
        manager = getattr(getattr(self, "model_runner", None), "lora_manager", None)
        if manager is None:
            return []
        manager = manager._adapter_manager
        return [part for name in manager.supported_lora_modules for part in manager.packed_modules_mapping.get(name, [name])]

    def lorikeet_take_orders(self, folder: str) -> str:
        """Take orders to read adapters, at a socket in `folder`; its path. Called once, by the replica whose engine this is."""
        self._lorikeet_reading()  # made here, in the loop's thread
        return OrderDesk(folder, self._lorikeet_read).path

    def lorikeet_enter_adapter(self, number: int) -> None:
        """Enter an adapter that has been read among those the engine holds. Raises what reading it raised."""
        read = self._lorikeet_end_read(number)
        if read is None:
            raise KeyError(f"adapter {number} was not read")
        lora, manager = read.result(timeout=0.0), self.model_runner.lora_manager._adapter_manager
        if len(manager) >= manager.capacity:
            manager.remove_oldest_adapter()
        manager._registered_adapters[number] = lora  # as its _add_adapter does, after the packing that _read has done

    def lorikeet_forget_adapter(self, number: int) -> None:
        """Let go of an adapter that is no longer wanted, being read or held."""
        read = self._lorikeet_end_read(number)
        if read is not None:
            read.cancel()
        self.model_runner.lora_manager.remove_adapter(number)

    def _lorikeet_read(self, name: str, number: int, path: str) -> Future[Any]:
        """Begin to read the adapter in the folder `path`. Called by the thread that takes the orders."""
        from vllm.lora.request import LoRARequest

        request = LoRARequest(lora_name=name, lora_int_id=number, lora_path=path)
        reading = self._lorikeet_reading()
        with reading.lock:
            read = reading.threads.submit(_read, self.model_runner.lora_manager, request)
            if not reading.reads:
                reading.hand_over = sys.getswitchinterval()
                sys.setswitchinterval(HAND_OVER_SECONDS)
            reading.reads[number] = read
        return read

    def _lorikeet_end_read(self, number: int) -> Future[Any] | None:
        reading = self._lorikeet_reading()
        with reading.lock:
            read = reading.reads.pop(number, None)
            if read is not None and not reading.reads:
                sys.setswitchinterval(reading.hand_over)
        return read

    def _lorikeet_reading(self) -> _Reading:
        # vLLM builds the worker without asking this class.
        state: dict[str, Any] = self.__dict__
        if "_lorikeet_reads" not in state:
            state["_lorikeet_reads"] = _Reading(
                ThreadPoolExecutor(_READERS, "adapter-read", initializer=_use_device, initargs=(self.device,))
            )
        found: _Reading = state["_lorikeet_reads"]
        return found


@dataclass(slots=True)
class _Reading:
    """What is being read, or has been read and is not entered yet, by number. Orders come in one thread, the rest in the engine's loop."""

    threads: ThreadPoolExecutor
    reads: dict[int, Future[Any]] = field(default_factory=dict)
    hand_over: float = 0.0  # the interpreter's switch interval while nothing is read
    lock: threading.Lock = field(default_factory=threading.Lock)


def _use_device(device: Any) -> None:
    """A thread begins on GPU 0, whichever its worker runs on; pinning memory for the copies would open that one too."""
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)


def _read(manager: Any, request: Any) -> Any:
    """The adapter's weights as vLLM holds them in CPU memory. Touches nothing that the steps use."""
    lora = manager._load_adapter(request)
    manager._adapter_manager._create_merged_loras_inplace(lora)
    return lora
