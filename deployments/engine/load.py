"""What an engine feels: part of Lorikeet's vLLM plugin (`plugin.py`), on every platform.

vLLM tells its load with each step's statistics, which are off here (they cost every step something); the autoscaler wants to know a
few times a minute. So the engine's process gets one more method that may be called from outside.
"""

from __future__ import annotations

from typing import Any

METHOD = "lorikeet_load"


def register() -> None:
    """Give vLLM's engine the method; once per process."""
    from vllm.v1.engine.core import EngineCore

    setattr(EngineCore, METHOD, _load)


def _load(core: Any) -> tuple[int, int, float]:
    """Requests that run, requests that wait, and the part of the KV cache that they use."""
    running, waiting = core.scheduler.get_request_counts()
    return running, waiting, core.scheduler.get_kv_cache_usage()
