"""The environment of an engine's processes: what vLLM reads when it is imported, before any argument."""

from __future__ import annotations


def engine_environment() -> dict[str, str]:
    """Of every engine."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "lorikeet_cpu_lora",  # no other package's plugins
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def cpu_environment(threads: int) -> dict[str, str]:
    """Of an engine that computes on the CPU, beside `engine_environment`; `threads` are those of its arithmetic."""
    return {
        # Ray would set one thread for an actor; two engines on one machine must not bind to the same cores.
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # The worker in the engine's own process, as on one GPU (docs/decisions/0016). vLLM gives it one here so that it can set what is set
        # above before that begins; two processes would wait for each other by spinning, a core for each engine.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
