"""Lorikeet's vLLM plugin (entry point `vllm.general_plugins`): what is wrong in the pinned vLLM and must not reach an answer, and a
question that it could not be asked otherwise (`load.py`).

vLLM calls `register` once in every process of its own, before it builds anything. Each remedy has a file that says what it is for, and a
test that fails without it; drop the file when upstream is right.
"""

from __future__ import annotations

from deployments.engine import cpu_lora, cpu_seed, load, token_masks


def register() -> None:
    cpu_lora.register()
    cpu_seed.register()
    token_masks.register()
    load.register()
