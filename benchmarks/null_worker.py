"""A vLLM worker whose forward pass is a sleep, so that only what stands around the GPU is measured.

Every stack runs it by engine arguments: worker_cls="benchmarks.null_worker.NullWorker", async_scheduling=False, with the repository's
root on PYTHONPATH. The engine, its scheduler and its detokenizer are vLLM's own; only the answer to "which token comes next" is made
up here: a fixed function of the prompt and the position, the same in every stack. Adapters are read from disk and held (`null_lora.py`).

NULL_STEP_MS is how long one engine step takes, whatever its batch; 5 if unset.
"""

from __future__ import annotations

import inspect
import os
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from benchmarks.null_lora import NullLoraManager

STEP_MS = "NULL_STEP_MS"
DEFAULT_STEP_MS = 5.0
CACHE_BYTES = 1 << 30  # nothing is kept in it; it bounds how many tokens the scheduler admits
_FIRST_TOKEN, _TOKENS, _STRIDE = 1000, 20_000, 7919  # ordinary words of any vocabulary of 32k or more; the stride is prime


@dataclass(slots=True)
class _Progress:
    """How far one request is."""

    seed: int
    prompt_tokens: int
    computed_tokens: int


class NullWorker(WorkerBase):
    """Answers the scheduler with made-up tokens after a pause."""

    def init_device(self) -> None:
        self.device = torch.device("cpu")
        self._step_seconds = float(os.environ.get(STEP_MS, DEFAULT_STEP_MS)) / 1e3
        lora = self.vllm_config.lora_config
        self._adapters = NullLoraManager(lora, self.vllm_config.model_config.max_model_len) if lora else None
        self.model_runner: Any = SimpleNamespace(lora_manager=self._adapters)
        self._progress: dict[str, _Progress] = {}

    def execute_model(self, scheduler_output: SchedulerOutput) -> ModelRunnerOutput:
        for request_id in scheduler_output.finished_req_ids:
            self._progress.pop(request_id, None)
        if not scheduler_output.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        if self._adapters is not None:
            self._adapters.use(new.lora_request for new in scheduler_output.scheduled_new_reqs if new.lora_request is not None)
        time.sleep(self._step_seconds)
        for new in scheduler_output.scheduled_new_reqs:
            prompt = new.prompt_token_ids or []
            self._progress[new.req_id] = _Progress(sum(prompt), len(prompt), new.num_computed_tokens)
        scheduled = scheduler_output.num_scheduled_tokens
        return ModelRunnerOutput(
            req_ids=list(scheduled),
            req_id_to_index={request_id: index for index, request_id in enumerate(scheduled)},
            sampled_token_ids=[self._advance(request_id, tokens) for request_id, tokens in scheduled.items()],
        )

    def _advance(self, request_id: str, tokens: int) -> list[int]:
        """The next token of a request, or none while its prompt is still being read."""
        progress = self._progress[request_id]
        progress.computed_tokens += tokens
        if progress.computed_tokens < progress.prompt_tokens:
            return []
        return [_FIRST_TOKEN + (progress.seed + progress.computed_tokens * _STRIDE) % _TOKENS]

    # What else vLLM asks of a worker: the cache is imaginary, the rest is nothing to do.

    def add_lora(self, lora_request: LoRARequest) -> bool:
        return self._held().add_adapter(lora_request)

    def remove_lora(self, lora_id: int) -> bool:
        return self._held().remove_adapter(lora_id)

    def pin_lora(self, lora_id: int) -> bool:
        return lora_id in self.list_loras()

    def list_loras(self) -> set[int]:
        return self._held().list_adapters()

    def _held(self) -> NullLoraManager:
        if self._adapters is None:
            raise RuntimeError("LoRA is not enabled")
        return self._adapters

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        block_size = self.vllm_config.cache_config.block_size or 16
        return {"layers.0.attn": FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=64, dtype=torch.bfloat16)}

    def get_supported_kv_cache_layouts(self) -> list[str]:
        return ["NHD"]

    def determine_available_memory(self) -> int:
        return CACHE_BYTES

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    def compile_or_warm_up_model(self) -> CompilationTimes:
        return CompilationTimes(*([0.0] * len(inspect.signature(CompilationTimes).parameters)))

    def supports_draft_weight_updates(self) -> bool:
        return False

    def sample_tokens(self, grammar_output: Any) -> ModelRunnerOutput:
        return EMPTY_MODEL_RUNNER_OUTPUT

    def take_draft_token_ids(self) -> None:
        return None

    def load_model(self, *, load_dummy_weights: bool = False) -> None: ...

    def set_kv_cache_layout(self, layout_name: str) -> None: ...

    def initialize_from_config(self, kv_cache_config: Any) -> None: ...

    def initialize_cache(self, num_gpu_blocks: int, num_cpu_blocks: int) -> None: ...

    def check_health(self) -> None: ...

    def execute_dummy_batch(self) -> None: ...

    def reset_mm_cache(self) -> None: ...

    def shutdown(self) -> None: ...
