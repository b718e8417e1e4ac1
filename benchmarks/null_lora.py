"""The null worker's adapters: read from disk as vLLM reads them, kept in CPU memory by its rules, and never multiplied with anything.

It stands where vLLM's LRUCacheWorkerLoRAManager stands in a real worker, so that loads cost here what they cost there. The same code of
vLLM's reads the folder, in the engine's loop when a step needs an adapter that is not held, or ahead of it (`engine/worker.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from vllm.config import LoRAConfig
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Held:
    """Adapters in CPU memory, least recently used first; stands where vLLM's LoRAModelManager does."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.supported_lora_modules = MODULES
        self.packed_modules_mapping: dict[str, list[str]] = {}
        self._registered_adapters: OrderedDict[int, LoRAModel] = OrderedDict()

    def __len__(self) -> int:
        return len(self._registered_adapters)

    def __contains__(self, number: int) -> bool:
        return number in self._registered_adapters

    def add_adapter(self, lora: LoRAModel) -> bool:
        self._registered_adapters[lora.id] = lora
        return True

    def remove_adapter(self, number: int) -> bool:
        return self._registered_adapters.pop(number, None) is not None

    def remove_oldest_adapter(self) -> bool:
        self._registered_adapters.popitem(last=False)
        return True

    def touch(self, number: int) -> None:
        self._registered_adapters.move_to_end(number)

    def numbers(self) -> set[int]:
        return set(self._registered_adapters)

    def _create_merged_loras_inplace(self, lora: LoRAModel) -> None:
        for weights in lora.loras.values():
            weights.optimize()


class NullLoraManager:
    """Stands where vLLM's LRUCacheWorkerLoRAManager does. `reread` counts the adapters that a step had to read by itself."""

    def __init__(self, config: LoRAConfig, context_tokens: int) -> None:
        assert config.max_cpu_loras is not None
        self._adapter_manager = Held(config.max_cpu_loras)
        self._config = config
        self._context_tokens = context_tokens
        self.reread = 0

    def use(self, requests: Iterable[LoRARequest]) -> None:
        """What a step does before it runs requests of these adapters."""
        for request in requests:
            if request.lora_int_id in self._adapter_manager:
                self._adapter_manager.touch(request.lora_int_id)
            else:
                self.reread += 1
                self.add_adapter(request)

    def add_adapter(self, request: LoRARequest) -> bool:
        if request.lora_int_id in self._adapter_manager:
            return True
        lora = self._load_adapter(request)
        self._adapter_manager._create_merged_loras_inplace(lora)
        if len(self._adapter_manager) >= self._adapter_manager.capacity:
            self._adapter_manager.remove_oldest_adapter()
        return self._adapter_manager.add_adapter(lora)

    def remove_adapter(self, number: int) -> bool:
        return self._adapter_manager.remove_adapter(number)

    def list_adapters(self) -> set[int]:
        return self._adapter_manager.numbers()

    def _load_adapter(self, request: LoRARequest) -> LoRAModel:
        helper = PEFTHelper.from_local_dir(request.lora_path, self._context_tokens)
        helper.validate_legal(self._config)
        dtype: Any = self._config.lora_dtype
        return LoRAModel.from_local_checkpoint(
            request.lora_path, set(MODULES), peft_helper=helper, lora_model_id=request.lora_int_id, device="cpu", dtype=dtype
        )
