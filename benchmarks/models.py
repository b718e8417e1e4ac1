"""What every stack serves: one base model and 16 random adapters of it, as folders made once and kept for the next run.

`null` is a one-layer random Llama under the null worker, where only the layers around the model count. `real` is the embedded
SmolLM2-135M in float32 on one thread, where the model counts for nearly all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.embedded import prepare
from tests.tiny import make_random_adapter, make_tiny_llama

ADAPTERS = 16
SLOTS = ADAPTERS + 1  # so that engine slots are never what is measured
RANK = 8
MAX_RANK = 16
CONTEXT_TOKENS = 2048
REQUESTS_IN_A_BATCH = 256  # stated, since vLLM's default differs between its server and its library
TOKENS_IN_A_STEP = 4096


@dataclass(frozen=True, slots=True)
class Workload:
    """A base model with its adapters, and how an engine is to run it. `engine` holds vLLM's own argument names, LoRA limits aside."""

    name: str
    base: str
    folder: Path
    adapters: tuple[Path, ...]
    engine: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def lora(self) -> dict[str, Any]:
        return {"enable_lora": True, "max_loras": SLOTS, "max_cpu_loras": SLOTS, "max_lora_rank": MAX_RANK}


def null_workload(kept: Path) -> Workload:
    """The null worker's model; made in `kept` if it is not there."""
    real = prepare(kept, _say)
    folder = kept / "null" / "base"
    if not (folder / "model.safetensors").is_file():
        make_tiny_llama(folder, real)
    worker = {"worker_cls": "benchmarks.null_worker.NullWorker", "async_scheduling": False}
    return Workload("null", "tiny", folder, _adapters(kept / "null", folder, "tiny"), _engine("bfloat16", worker))


def real_workload(kept: Path) -> Workload:
    """SmolLM2-135M-Instruct in float32; made in `kept` if it is not there."""
    folder = prepare(kept, _say)
    base = "smollm2-135m"
    return Workload("real", base, folder, _adapters(kept / "real", folder, base), _engine("float32", {}), {"VLLM_CPU_KVCACHE_SPACE": "1"})


def _engine(dtype: str, more: dict[str, Any]) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "max_model_len": CONTEXT_TOKENS,
        "max_num_seqs": REQUESTS_IN_A_BATCH,
        "max_num_batched_tokens": TOKENS_IN_A_STEP,
        "enforce_eager": True,
        **more,
    }


def _adapters(kept: Path, base_folder: Path, base_name: str) -> tuple[Path, ...]:
    folders = tuple(kept / f"a{number:02d}" for number in range(ADAPTERS))
    for seed, folder in enumerate(folders):
        made = folder / "adapter_config.json"  # written last
        if not made.is_file() or json.loads(made.read_text())["r"] != RANK:
            make_random_adapter(folder, base_folder, seed=seed, rank=RANK, base_name=base_name)
    return folders


def _say(line: str) -> None:
    print(line, flush=True)
