"""The wrapped LoRA kernels against a plain computation: rows without an adapter keep what they held."""

from __future__ import annotations

import itertools

import pytest
import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

from deployments.engine import cpu_lora

KERNELS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
SLOTS, HIDDEN, RANK, OUT = 3, 8, 4, 10
EVERY_MIX = [
    pytest.param([-1, -1, -1, -1], id="all rows without an adapter"),
    pytest.param([0, 1, 2, 0], id="no row without an adapter"),
    pytest.param([-1, 2, -1, 0], id="some rows without an adapter"),
    pytest.param([2, -1, -1, -1], id="one row with an adapter"),
    pytest.param([-1], id="a single row without an adapter"),
    pytest.param([2], id="a single row with an adapter"),
]


@pytest.fixture(autouse=True)
def remedied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin registered, as in a vLLM process on the CPU; undone afterwards."""
    monkeypatch.delenv("LORIKEET_WITHOUT_CPU_LORA_REMEDY", raising=False)
    monkeypatch.setattr("vllm.platforms.current_platform", _Platform(cpu=True))
    for module, name in itertools.product((lora_ops, punica_cpu), KERNELS):
        monkeypatch.setattr(module, name, getattr(module, name))
    cpu_lora.register()


class _Platform:
    def __init__(self, *, cpu: bool) -> None:
        self._cpu = cpu

    def is_cpu(self) -> bool:
        return self._cpu


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("mix", EVERY_MIX)
@pytest.mark.parametrize("stacked_dims", [3, 4])
def test_shrink_leaves_rows_without_an_adapter_as_they_were(mix: list[int], stacked_dims: int) -> None:
    inputs, weights, output = random(len(mix), HIDDEN), random(SLOTS, RANK, HIDDEN), random(len(mix), RANK)
    expected = [output[row] if slot < 0 else 0.5 * weights[slot] @ inputs[row] for row, slot in enumerate(mix)]
    stacked = weights if stacked_dims == 3 else weights.unsqueeze(1)
    expected = torch.stack([row.clone() for row in expected])
    punica_cpu.bgmv_shrink(inputs, stacked, output, torch.tensor(mix), 0.5)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("mix", EVERY_MIX)
@pytest.mark.parametrize("add", [True, False])
def test_expand_leaves_rows_without_an_adapter_as_they_were(mix: list[int], add: bool) -> None:
    inputs, weights, output = random(len(mix), RANK), random(SLOTS, OUT, RANK), random(len(mix), OUT)
    expected = output.clone()
    for row, slot in enumerate(mix):
        if slot >= 0:
            expected[row] = weights[slot] @ inputs[row] + (output[row] if add else 0)
    punica_cpu.bgmv_expand(inputs, weights, output, torch.tensor(mix), add_inputs=add)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("mix", EVERY_MIX)
@pytest.mark.parametrize("add", [True, False])
def test_expand_of_a_slice_leaves_other_rows_and_columns_as_they_were(mix: list[int], add: bool) -> None:
    inputs, weights, output = random(len(mix), RANK), random(SLOTS, 4, RANK), random(len(mix), OUT)
    expected = output.clone()
    for row, slot in enumerate(mix):
        if slot >= 0:
            expected[row, 3:7] = weights[slot] @ inputs[row] + (output[row, 3:7] if add else 0)
    punica_cpu.bgmv_expand_slice(inputs, weights, output, torch.tensor(mix), 3, 4, add_inputs=add)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("mix", EVERY_MIX)
def test_prefill_kernels_go_by_the_wrapped_ones(mix: list[int]) -> None:
    """A prompt's rows are given by lengths: vLLM's sgmv kernels spread the indices and call bgmv by its name in their own module."""
    lengths = torch.arange(2, 2 + len(mix))
    rows = int(lengths.sum())
    inputs, weights, output = random(rows, RANK), random(SLOTS, OUT, RANK), random(rows, OUT)
    expected = output.clone()
    for row, slot in enumerate(torch.repeat_interleave(torch.tensor(mix), lengths).tolist()):
        if slot >= 0:
            expected[row] += weights[slot] @ inputs[row]
    starts = torch.cumsum(lengths, 0) - lengths
    punica_cpu.sgmv_expand(inputs, weights, output, starts, lengths, torch.tensor(mix), len(mix), int(lengths.max()), rows, add_inputs=True)
    torch.testing.assert_close(output, expected)


def test_indices_may_be_longer_than_the_batch() -> None:
    """vLLM keeps them in a buffer for the largest batch."""
    inputs, weights, output = random(2, RANK), random(SLOTS, OUT, RANK), random(2, OUT)
    expected = output.clone()
    expected[0] += weights[1] @ inputs[0]
    punica_cpu.bgmv_expand(inputs, weights, output, torch.tensor([1, -1, 2, 2]), add_inputs=True)
    torch.testing.assert_close(output, expected)


def test_rows_without_an_adapter_would_get_the_last_slot_without_the_remedy() -> None:
    """What the remedy is for. When this fails, vLLM has been mended: drop deployments/engine/cpu_lora.py."""
    inputs, weights, output = random(1, RANK), random(SLOTS, OUT, RANK), torch.zeros(1, OUT)
    lora_ops.bgmv_expand.__wrapped__(inputs, weights, output, torch.tensor([-1]), add_inputs=True)
    torch.testing.assert_close(output[0], weights[-1] @ inputs[0])


def test_registering_twice_wraps_once() -> None:
    before = [getattr(module, name) for module, name in itertools.product((lora_ops, punica_cpu), KERNELS)]
    cpu_lora.register()
    assert before == [getattr(module, name) for module, name in itertools.product((lora_ops, punica_cpu), KERNELS)]
    assert not hasattr(lora_ops.bgmv_shrink.__wrapped__, "__wrapped__")


def test_gpus_keep_vllms_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    own = lora_ops.bgmv_shrink.__wrapped__
    monkeypatch.setattr(lora_ops, "bgmv_shrink", own)
    monkeypatch.setattr("vllm.platforms.current_platform", _Platform(cpu=False))
    cpu_lora.register()
    assert lora_ops.bgmv_shrink is own


@pytest.mark.parametrize("mix", [[-1, 2], [1, 0]])
def test_a_prompts_rows_that_vllm_gives_others_indices_are_left_as_they_were(mix: list[int]) -> None:
    """prompt_logprobs: the head is asked for a whole prompt with the indices of the rows that are sampled. It ended the engine."""
    inputs, weights, output = random(9, HIDDEN), random(SLOTS, OUT, HIDDEN), random(9, OUT)
    before = output.clone()
    punica_cpu.bgmv_expand(inputs, weights, output, torch.tensor(mix), add_inputs=True)
    torch.testing.assert_close(output, before)
