"""validate.py: adapters that an engine serves right get in, on the base that is theirs. What is refused: test_unfit_matrix.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters_store.base_model import UNKNOWN_SIZE, BaseProfile
from adapters_store.errors import InvalidAdapter, Unavailable
from adapters_store.tensor_values import inspect_values
from adapters_store.validate import Fit, inspect
from tests.adapters_store.adapters import ALL_LINEAR, encode, lora_tensors, module_sizes, np, write_adapter, write_safetensors

TINY = BaseProfile("tiny", ("tiny", "org/Tiny-Instruct"), "LlamaForCausalLM", 16, module_sizes())
WIDE = BaseProfile(
    "wide", ("wide", "org/Wide"), "LlamaForCausalLM", 64, {name: (2 * out, 2 * into) for name, (out, into) in module_sizes().items()}
)
PREFIX = "base_model.model."
Q0 = "model.layers.0.self_attn.q_proj"

FIT: dict[str, dict[str, Any]] = {
    "rank 1": {"rank": 1},
    "rank 3": {"rank": 3},
    "the highest rank": {"rank": 16},
    "rsLoRA": {"use_rslora": True},
    "a high alpha": {"lora_alpha": 128},
    "a fractional alpha": {"lora_alpha": 0.5},
    "a negative alpha": {"lora_alpha": -4},
    "all linear modules": {"targets": ALL_LINEAR},
    "one kind of module": {"targets": ("down_proj",)},
    "F16": {"dtype": "F16"},
    "BF16": {"dtype": "BF16"},
    "a target that the base lacks": {"target_modules": ["q_proj", "v_proj", "c_attn"]},
    "targets by their ends": {"target_modules": ["self_attn.q_proj", "self_attn.v_proj"]},
    "targets as a pattern": {"target_modules": r".*\.(q|v)_proj"},
    "a hostile pattern": {"target_modules": "(.+)+(.+)+x"},
    "all-linear": {"targets": ALL_LINEAR, "target_modules": "all-linear"},
    "one layer": {"sizes": module_sizes(1), "layers_to_transform": [0]},
    "one layer of a list": {"sizes": module_sizes(1), "layers_to_transform": 0, "layers_pattern": "layers"},
    "a module excluded": {"sizes": module_sizes(1), "exclude_modules": ["layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"]},
    "a gaussian start": {"init_lora_weights": "gaussian"},
    "an EVA start": {"init_lora_weights": "eva", "eva_config": {"rho": 1.0}},
    "dropout while training": {"lora_dropout": 0.5},
    "the base by its other name": {"base_model_name_or_path": "org/Tiny-Instruct"},
    "the base by its other name in lower case": {"base_model_name_or_path": "ORG/tiny-instruct/"},
    "the base by a path": {"base_model_name_or_path": "/tmp/x/tiny"},
    "the base by a Windows path": {"base_model_name_or_path": r"C:\models\Tiny"},
    "the base by no name": {"base_model_name_or_path": None},
    "the base by an unknown name": {"base_model_name_or_path": "/mnt/checkpoint-200"},
    "a library's mapping": {"auto_mapping": {"base_model_class": "FastLlamaModel", "parent_library": "x"}},
    "an unknown field that is off": {"some_new_field": None, "another": False, "third": []},
}  # fmt: skip


@pytest.mark.parametrize("made", FIT.values(), ids=FIT)
def test_a_fit_adapter_gets_in(tmp_path: Path, made: dict[str, Any]) -> None:
    assert inspect(write_adapter(tmp_path, **made), [WIDE, TINY]) == Fit("tiny", made.get("rank", 4))


def test_files_that_trainers_leave_beside_the_adapter_get_in(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    for name in ("LICENSE", "tokenizer.json", "tokenizer.model", ".gitattributes", "merges.txt"):
        (tmp_path / name).write_text("x")
    assert inspect(tmp_path, [TINY]) == Fit("tiny", 4)


A, B = "lora_A.weight", "lora_B.weight"


def floats(shape: tuple[int, ...], value: float = 1.0, dtype: str = "F32") -> tuple[str, tuple[int, ...], bytes]:
    return dtype, shape, encode(np.full(shape, value), dtype)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_an_untrained_adapter_is_refused_because_it_changes_nothing(tmp_path: Path, dtype: str) -> None:
    write_adapter(tmp_path)
    tensors = lora_tensors({Q0: (32, 32)}, rank=4, dtype=dtype)
    tensors[f"{PREFIX}{Q0}.{B}"] = floats((32, 4), -0.0, dtype)
    write_safetensors(tmp_path / "adapter_model.safetensors", tensors)
    with pytest.raises(InvalidAdapter, match="would change nothing"):
        inspect_values(tmp_path)


@pytest.mark.parametrize("module", [Q0, "model.layers.1.self_attn.v_proj"])
def test_one_module_that_learned_nothing_is_fine(tmp_path: Path, module: str) -> None:
    sizes = {name: size for name, size in module_sizes().items() if name.endswith(("q_proj", "v_proj"))}
    tensors = lora_tensors(sizes, rank=4)
    tensors[f"{PREFIX}{module}.{B}"] = floats((sizes[module][0], 4), 0.0)
    write_safetensors(write_adapter(tmp_path) / "adapter_model.safetensors", tensors)
    assert inspect(tmp_path, [TINY]) == Fit("tiny", 4)


@pytest.mark.parametrize(("dtype", "largest"), [("F32", 3.4028234e38), ("F16", 65504.0), ("BF16", 3.3895313e38)])
def test_the_largest_finite_values_are_no_infinities_and_overflow(tmp_path: Path, dtype: str, largest: float) -> None:
    tensors = {f"{PREFIX}{Q0}.{A}": floats((4, 32), largest, dtype), f"{PREFIX}{Q0}.{B}": floats((32, 4), -largest, dtype)}
    write_safetensors(tmp_path / "adapter_model.safetensors", tensors)
    with pytest.raises(InvalidAdapter, match="would overflow") as refused:
        inspect_values(tmp_path)
    assert len(refused.value.reasons) == 1


@pytest.mark.parametrize(("alpha", "is_taken"), [(4, True), (8000, False), (-8000, False)])
def test_weights_overflow_by_their_product_and_alpha(tmp_path: Path, alpha: int, is_taken: bool) -> None:
    tensors = {f"{PREFIX}{Q0}.{A}": floats((4, 32), 1e5), f"{PREFIX}{Q0}.{B}": floats((32, 4), 1e-2)}
    folder = write_adapter(tmp_path, target_modules=[Q0], lora_alpha=alpha, r=4)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    if is_taken:
        assert inspect(folder, [TINY]) == Fit("tiny", 4)
        return
    with pytest.raises(InvalidAdapter, match=r"q_proj \(alpha/r -?2e\+03, A up to 1e\+05, B up to 0.01\)"):
        inspect(folder, [TINY])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield write_adapter(tmp_path / "adapter")


def refused(folder: Path) -> InvalidAdapter:
    with pytest.raises(InvalidAdapter) as caught:
        inspect(folder, [TINY])
    return caught.value


def test_one_refusal_names_every_fault(tmp_path: Path) -> None:
    write_adapter(tmp_path, rank=32, use_dora=True, bias="all", target_modules=["q_proj", "k_proj", "v_proj"])
    (tmp_path / "x.py").write_text("")
    reasons = refused(tmp_path).reasons
    for fault in ("x.py", "use_dora", "bias", "r is 32", "k_proj"):
        assert any(fault in reason for reason in reasons), fault


def test_no_refusal_is_endless(tmp_path: Path) -> None:
    sizes = {f"{'m' * 500}.{n}.q_proj": (32, 32) for n in range(500)}
    assert len(refused(write_adapter(tmp_path, sizes=sizes, base_model_name_or_path="x" * 50_000)).message) < 5000


def test_another_bases_adapter_is_refused_with_both_facts(tmp_path: Path) -> None:
    write_adapter(tmp_path, sizes={name: (3 * out, 3 * into) for name, (out, into) in module_sizes().items()})
    message = refused(tmp_path).message
    assert "base_model_name_or_path is 'tiny'" in message
    assert "another base's adapter" in message


def test_an_adapter_that_fits_no_served_base_hears_why_of_each(tmp_path: Path) -> None:
    sizes = {name: (3 * out, 3 * into) for name, (out, into) in module_sizes().items()}
    write_adapter(tmp_path, sizes=sizes, base_model_name_or_path="org/Other")
    with pytest.raises(InvalidAdapter) as caught:
        inspect(tmp_path, [TINY, WIDE])
    assert "'org/Other', which no base served here is called" in caught.value.message
    assert "base tiny does not take it" in caught.value.message
    assert "base wide does not take it" in caught.value.message


def test_a_named_base_that_does_not_fit_is_not_exchanged_for_one_that_does(tmp_path: Path) -> None:
    write_adapter(tmp_path, base_model_name_or_path="org/Wide")
    with pytest.raises(InvalidAdapter, match="'org/Wide'; base wide does not take it"):
        inspect(tmp_path, [TINY, WIDE])


def test_an_adapter_that_fits_two_bases_is_refused_unless_one_is_named(tmp_path: Path) -> None:
    twin = replace(TINY, id="twin", names=("twin",))
    write_adapter(tmp_path, base_model_name_or_path="/checkpoints/final")
    with pytest.raises(InvalidAdapter, match="it would fit tiny, twin"):
        inspect(tmp_path, [TINY, twin])
    assert inspect(tmp_path, [TINY, twin], base_hint="twin") == Fit("twin", 4)
    write_adapter(tmp_path, base_model_name_or_path="/checkpoints/twin")
    assert inspect(tmp_path, [TINY, twin]) == Fit("twin", 4)


def test_a_whole_name_decides_before_its_last_segment(tmp_path: Path) -> None:
    ours, theirs = replace(TINY, id="ours/chat", names=()), replace(TINY, id="theirs/chat", names=())
    write_adapter(tmp_path, base_model_name_or_path="theirs/chat")
    assert inspect(tmp_path, [ours, theirs]) == Fit("theirs/chat", 4)


def test_an_architecture_tells_bases_of_one_shape_apart(tmp_path: Path) -> None:
    mistral = replace(TINY, id="mistral", names=("mistral",), architecture="MistralForCausalLM")
    write_adapter(tmp_path, base_model_name_or_path=None, auto_mapping={"base_model_class": "MistralForCausalLM"})
    assert inspect(tmp_path, [TINY, mistral]) == Fit("mistral", 4)


def test_a_base_named_at_upload_that_is_not_served_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidAdapter, match="base 'huge' is not served here; served are tiny"):
        inspect(folder, [TINY], base_hint="huge")


def test_a_base_named_at_upload_must_fit(folder: Path) -> None:
    with pytest.raises(InvalidAdapter, match="the upload names base 'wide'; base wide does not take it"):
        inspect(folder, [TINY, WIDE], base_hint="wide")


def test_unknown_sizes_of_a_quantised_base_are_not_compared_but_its_modules_are(folder: Path, tmp_path: Path) -> None:
    quantised = replace(TINY, modules=dict.fromkeys(TINY.modules, (UNKNOWN_SIZE, UNKNOWN_SIZE)))
    assert inspect(folder, [quantised]) == Fit("tiny", 4)
    write_adapter(tmp_path / "other", targets=["c_attn"], sizes={"h.0.c_attn": (96, 32)})
    with pytest.raises(InvalidAdapter, match="lacks or cannot adapt"):
        inspect(tmp_path / "other", [quantised])


def test_without_any_base_the_upload_may_be_tried_again(folder: Path) -> None:
    with pytest.raises(Unavailable, match="no base model has started"):
        inspect(folder, [])


def test_a_pattern_from_outside_is_never_run(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"target_modules": "(.+)+(.+)+x", "exclude_modules": "(.+)+(.+)+x"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert inspect(folder, [TINY]) == Fit("tiny", 4)
