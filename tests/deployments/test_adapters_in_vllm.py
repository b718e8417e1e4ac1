"""An adapter read beside the steps is, to the last number, what vLLM's own loading would have made of it: in vLLM's own LoRA manager.

One process, a one-layer Llama, no engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm.config import set_current_vllm_config
from vllm.distributed import cleanup_dist_env_and_memory, init_distributed_environment, initialize_model_parallel
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.model_loader import get_model

from deployments.engine.worker import LoraModules
from tests.tiny import make_random_adapter

SLOTS = 2
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj")  # packed wholly, packed with a part missing, not packed


class Worker(LoraModules):
    """vLLM's worker, as far as adapters go."""

    def __init__(self, manager: LRUCacheWorkerLoRAManager) -> None:
        self.manager = manager
        self.model_runner = SimpleNamespace(lora_manager=manager)
        self.device = torch.device("cpu")

    def load(self, number: int, path: Path) -> None:
        self._lorikeet_read(f"acme/a@{number}", number, str(path)).result(30.0)
        self.lorikeet_enter_adapter(number)

    def slot(self, number: int) -> dict[str, list[torch.Tensor]]:
        """The weights of the engine slot that holds the adapter, by module."""
        inner = self.manager._adapter_manager
        index = inner.lora_index_to_id.index(number)
        stacks = {name: (*module.lora_a_stacked, *module.lora_b_stacked) for name, module in inner.modules.items() if "layers" in name}
        return {name: [stack[index].clone() for stack in found] for name, found in stacks.items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=256, num_hidden_layers=1, max_position_embeddings=256, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def worker(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    lora: dict[str, Any] = {"enable_lora": True, "max_loras": SLOTS, "max_cpu_loras": 4, "max_lora_rank": 16}
    config = AsyncEngineArgs(
        model=str(base), skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=256, **lora
    ).create_engine_config()
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{tmp_path_factory.mktemp('group')}/store", 0, backend="gloo")
        initialize_model_parallel(1, 1)
        model: Any = get_model(vllm_config=config)
        manager = LRUCacheWorkerLoRAManager(config, torch.device("cpu"), model.embedding_modules)
        manager.create_lora_manager(model, config)
        yield Worker(manager)
    cleanup_dist_env_and_memory()


def test_what_is_entered_is_what_vllm_would_have_entered(worker: Worker, base: Path, tmp_path: Path) -> None:
    make_random_adapter(tmp_path / "a", base, seed=1, target_modules=MODULES)
    make_random_adapter(tmp_path / "b", base, seed=2, target_modules=MODULES)
    worker.load(1, tmp_path / "a")
    assert worker.manager._adapter_manager.lora_index_to_id == [None] * SLOTS, "a load takes no slot from what runs"
    worker.manager.set_active_adapters({LoRARequest("acme/a@1", 1, "/it is not read again")}, None)  # what a step does that runs it
    ours = worker.slot(1)
    worker.manager.remove_adapter(1)

    worker.manager.add_adapter(LoRARequest("acme/a@2", 2, str(tmp_path / "a")))
    worker.manager.add_adapter(LoRARequest("acme/b@3", 3, str(tmp_path / "b")))
    theirs, other = worker.slot(2), worker.slot(3)
    assert any(tensor.any() for tensors in ours.values() for tensor in tensors)
    assert ours.keys() == theirs.keys()
    for name, tensors in ours.items():
        assert all(torch.equal(one, another) for one, another in zip(tensors, theirs[name], strict=True)), name
    assert not all(torch.equal(one, another) for name in ours for one, another in zip(ours[name], other[name], strict=True))
    for number in (2, 3):
        worker.lorikeet_forget_adapter(number)
    assert worker.manager.list_adapters() == set()
