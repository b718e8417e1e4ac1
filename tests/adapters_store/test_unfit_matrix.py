"""Every field of an adapter's config and every kind of damage to its files, done to a demo adapter, is refused with its reason and remedy.

The same adapter untouched gets in each time, so what is refused is the damage.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig

from adapters_store.base_model import BaseProfile, read_profile
from adapters_store.errors import InvalidAdapter
from adapters_store.validate import Fit, inspect
from tests.adapters_store.damage import CONFIG, Damage, config_with
from tests.adapters_store.unfit_configs import HARMLESS, UNFIT_CONFIGS
from tests.adapters_store.unfit_files import UNFIT_BYTES, UNFIT_FILES
from tests.adapters_store.unfit_tensors import UNFIT_NAMES, UNFIT_TENSORS

DEMO = Path(__file__).parents[2] / "examples" / "adapters" / "demo" / "pirate"
FIT = Fit("smollm2-135m", 4)
UNFIT: dict[str, tuple[Damage, tuple[str, ...]]] = {
    **{f"config: {name}": (config_with(**fields), says) for name, (fields, says) in UNFIT_CONFIGS.items()},
    **{f"tensors: {name}": case for name, case in UNFIT_TENSORS.items()},
    **{f"names: {name}": case for name, case in UNFIT_NAMES.items()},
    **{f"bytes: {name}": case for name, case in UNFIT_BYTES.items()},
    **{f"files: {name}": case for name, case in UNFIT_FILES.items()},
}


@pytest.fixture(scope="module")
def base(embedded_model: Path) -> BaseProfile:
    """The embedded model as a replica of it describes it."""
    return read_profile(embedded_model, id=FIT.base, names=(), max_rank=64, adaptable=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(DEMO, tmp_path / "adapter")


@pytest.mark.parametrize(("damage", "says"), UNFIT.values(), ids=UNFIT)
def test_an_unfit_adapter_is_refused_with_its_reason_and_untouched_it_gets_in(
    base: BaseProfile, folder: Path, damage: Damage, says: tuple[str, ...]
) -> None:
    assert inspect(folder, [base]) == FIT
    damage(folder)
    with pytest.raises(InvalidAdapter) as caught:
        inspect(folder, [base])
    for words in says:
        assert words in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 5000


@pytest.mark.parametrize("field", HARMLESS)
def test_a_field_that_changes_nothing_gets_in_whatever_it_says(base: BaseProfile, folder: Path, field: str) -> None:
    config_with(**{field: HARMLESS[field]})(folder)
    assert inspect(folder, [base]) == FIT


def test_every_field_that_peft_knows_is_in_the_matrix() -> None:
    """A new release of PEFT fails here until its fields are known to be harmless or are refused."""
    fields = LoraConfig().to_dict().keys() | json.loads((DEMO / CONFIG).read_text()).keys()
    judged = {field for fields, _ in UNFIT_CONFIGS.values() for field in fields}
    assert fields - judged - HARMLESS.keys() == set()
