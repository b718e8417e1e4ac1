"""The right weights on the CPU: a vLLM plugin that keeps adapters out of base-model rows.

vLLM's torch LoRA kernels (its CPU backend) index the stacked adapters with -1 for a row that has no adapter, and -1 picks the LAST
slot: once every slot is full, a base request batched with an adapter request is answered with that adapter. The GPU kernels skip
-1. They also fail where `prompt_logprobs` meet another request in a step. vLLM loads this plugin (entry point `vllm.general_plugins`) in
every process of its own; it wraps the three kernels so that rows with index -1 keep their output as it was. Upstream: vLLM PRs 48421 and
49656; drop this file when they are in.
`tests/system/test_right_weights.py` fails without it. LORIKEET_WITHOUT_CPU_LORA_REMEDY=1 leaves it out, for that test alone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

_KERNELS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


def register() -> None:
    """Called once in each of vLLM's processes. Wraps the kernels on the CPU platform; does nothing elsewhere."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or os.environ.get("LORIKEET_WITHOUT_CPU_LORA_REMEDY") == "1":
        return
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in _KERNELS:
        # Both modules hold the name: the sgmv kernels of lora_ops call bgmv there, the wrapper imported it.
        skipping = _skip_rows_without_adapter(getattr(lora_ops, name))
        setattr(lora_ops, name, skipping)
        setattr(punica_cpu, name, skipping)


def _skip_rows_without_adapter(kernel: Callable[..., None]) -> Callable[..., None]:
    """`kernel(inputs, weights, output, indices, …)`, run on the rows whose index is not -1 only."""
    if getattr(kernel, "skips_rows_without_adapter", False):
        return kernel

    @functools.wraps(kernel)
    def skipping(inputs: Any, weights: Any, output: Any, indices: Any, *args: Any, **kwargs: Any) -> None:
        if indices.shape[0] < inputs.shape[0]:
            # A prompt's rows on their way through the head (prompt_logprobs), with the indices of the rows that are sampled: vLLM knows
            # no adapter for them, and fails, which ends the engine. None has weights there: adapters of the head are refused at upload.
            return
        rows = indices[: inputs.shape[0]] >= 0
        if bool(rows.all()):
            kernel(inputs, weights, output, indices, *args, **kwargs)
            return
        if not bool(rows.any()):
            return
        kept = output[: inputs.shape[0]][rows]  # a copy: the kernel writes into it
        kernel(inputs[rows], weights, kept, indices[: inputs.shape[0]][rows], *args, **kwargs)
        output[: inputs.shape[0]][rows] = kept

    skipping.skips_rows_without_adapter = True  # type: ignore[attr-defined]
    return skipping
