"""Seeded requests on the CPU: part of Lorikeet's vLLM plugin (`plugin.py`).

While a prompt is still being read in chunks, vLLM samples for it, throws the token away, and winds its seeded generator back by an
offset. A CPU generator has no offset: the engine dies of it, and with it every request in flight. Here the generator's whole state is
kept before such a sample and put back after, so that a seed means the same answer however its prompt was chunked.
`tests/system/test_short_path.py` fails without it.
"""

from __future__ import annotations

import functools
from typing import Any


def register() -> None:
    """Wrap two methods of vLLM's CPU model runner; once per process. Does nothing on other platforms."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if getattr(CPUModelRunner, "keeps_generators", False):
        return
    sample, bookkeep = CPUModelRunner._sample, CPUModelRunner._bookkeeping_sync

    @functools.wraps(sample)
    def sample_and_restore(runner: Any, *args: Any, **kwargs: Any) -> Any:
        before = {generator: generator.get_state() for generator in _discarded(runner).values()}
        output = sample(runner, *args, **kwargs)
        for generator, state in before.items():
            generator.set_state(state)
        return output

    @functools.wraps(bookkeep)
    def bookkeep_without_offsets(runner: Any, *args: Any, **kwargs: Any) -> Any:
        batch = runner.input_batch
        generators, discarded = batch.generators, _discarded(runner)
        batch.generators = {index: generator for index, generator in generators.items() if index not in discarded}
        try:
            return bookkeep(runner, *args, **kwargs)
        finally:
            batch.generators = generators

    CPUModelRunner._sample = sample_and_restore  # type: ignore[method-assign, assignment]
    CPUModelRunner._bookkeeping_sync = bookkeep_without_offsets  # type: ignore[method-assign, assignment]
    CPUModelRunner.keeps_generators = True  # type: ignore[attr-defined]


def _discarded(runner: Any) -> dict[int, Any]:
    """Generators of the requests whose sample of this step is thrown away, by their row in the batch."""
    mask, generators = runner.discard_request_mask.np, runner.input_batch.generators
    return {index: generator for index, generator in generators.items() if mask[index]}
