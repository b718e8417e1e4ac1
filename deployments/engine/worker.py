"""Inside vLLM's worker: what Lorikeet asks of it. vLLM mixes this class into its own (`worker_extension_cls`).

Method names are prefixed: they live among vLLM's own. All are called by the engine's loop, between two steps, so each must be short.

**Adapters are read beside the steps.** vLLM's own `add_lora` reads, converts and packs the weights in the engine's loop: every running
stream stands still meanwhile, and several loads that come together hold it for all of them. Here a thread does that work, with vLLM's own
code, and the loop only enters the result among the adapters that the engine holds:

    read_adapter ──▶ a thread: vLLM's _load_adapter, then its packing ──▶ take_adapter: into vLLM's CPU cache ──▶ first step that runs it:
                                                                           False while it is read                  into an engine slot

What is entered is what vLLM itself would have entered. An adapter that its CPU cache has dropped since is read again by vLLM, from the
same folder.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

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

    def lorikeet_read_adapter(self, name: str, number: int, path: str) -> None:
        """Begin to read the adapter in the folder `path`; returns at once."""
        from vllm.lora.request import LoRARequest

        request = LoRARequest(lora_name=name, lora_int_id=number, lora_path=path)
        threads, reads = self._lorikeet_reading()
        if not reads:
            self.__dict__["_lorikeet_hand_over"] = sys.getswitchinterval()
            sys.setswitchinterval(HAND_OVER_SECONDS)
        reads[number] = threads.submit(_read, self.model_runner.lora_manager, request)

    def lorikeet_take_adapter(self, number: int) -> bool:
        """Enter an adapter that has been read among those the engine holds; False while it is being read. Raises what reading it raised."""
        _, reads = self._lorikeet_reading()
        read = reads.get(number)
        if read is None:
            return number in self.model_runner.lora_manager.list_adapters()  # a second worker was slower: this one has it
        if not read.done():
            return False
        self._lorikeet_end_read(number)
        lora, manager = read.result(), self.model_runner.lora_manager._adapter_manager
        if len(manager) >= manager.capacity:
            manager.remove_oldest_adapter()
        manager._registered_adapters[number] = lora  # as its _add_adapter does, after the packing that _read has done
        return True

    def lorikeet_forget_adapter(self, number: int) -> None:
        """Let go of an adapter that is no longer wanted, being read or held."""
        read = self._lorikeet_end_read(number)
        if read is not None:
            read.cancel()
        self.model_runner.lora_manager.remove_adapter(number)

    def _lorikeet_end_read(self, number: int) -> Future[Any] | None:
        _, reads = self._lorikeet_reading()
        read = reads.pop(number, None)
        if read is not None and not reads:
            sys.setswitchinterval(self.__dict__["_lorikeet_hand_over"])
        return read

    def _lorikeet_reading(self) -> tuple[ThreadPoolExecutor, dict[int, Future[Any]]]:
        # vLLM builds the worker without asking this class.
        state: dict[str, Any] = self.__dict__
        if "_lorikeet_reads" not in state:
            threads = ThreadPoolExecutor(_READERS, "adapter-read", initializer=_use_device, initargs=(self.device,))
            state["_lorikeet_reads"] = (threads, {})
        found: tuple[ThreadPoolExecutor, dict[int, Future[Any]]] = state["_lorikeet_reads"]
        return found


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
