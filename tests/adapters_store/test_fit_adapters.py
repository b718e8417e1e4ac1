"""The adapters whose answers the system tests hold against peft's: of every kind, and all of them let in."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters_store.base_model import read_profile
from adapters_store.validate import Fit, inspect
from tests.system.fit_adapters import ATTENTION, BF16, F16, F32, FEED_FORWARD, FIT_ADAPTERS, write_fit_adapters
from tests.system.stack import BASE, MAX_RANKS, MAX_UPLOAD_BYTES, TINY
from tests.tiny import make_tiny_llama


def test_they_are_of_every_kind_that_is_promised() -> None:
    kinds = FIT_ADAPTERS.values()
    assert {1, 2, 8, 16, 32, 64} <= {adapter.rank for adapter in kinds}
    assert {0.5, 128} <= {adapter.alpha for adapter in kinds}
    assert {F32, F16, BF16} == {adapter.dtype for adapter in kinds}
    alone = {(module,) for module in (*ATTENTION, *FEED_FORWARD)}
    assert {*alone, ATTENTION, FEED_FORWARD, (*ATTENTION, *FEED_FORWARD), "all-linear"} <= {adapter.targets for adapter in kinds}
    assert {True, False} == {bool(adapter.fields.get("use_rslora")) for adapter in kinds}


@pytest.mark.parametrize("base", [BASE, TINY])
def test_they_get_in_as_the_test_stack_is_set(base: str, embedded_model: Path, tmp_path: Path) -> None:
    model = embedded_model
    if base == TINY:
        model = tmp_path / TINY
        make_tiny_llama(model, embedded_model)
    profile = read_profile(model, id=base, names=(), max_rank=MAX_RANKS[base], adaptable=None)
    for name, folder in write_fit_adapters(tmp_path / "fit", base, model).items():
        assert inspect(folder, [profile]) == Fit(base, FIT_ADAPTERS[name].rank), name
        assert sum(file.stat().st_size for file in folder.iterdir()) < MAX_UPLOAD_BYTES - 4096
