"""validate.py: adapters that an engine serves right get in, every other kind is refused with its reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters_store.base_model import UNKNOWN_SIZE, BaseProfile
from adapters_store.errors import InvalidAdapter, Unavailable
from adapters_store.tensor_values import inspect_values
from adapters_store.validate import Fit, inspect
from tests.adapters_store.adapters import ALL_LINEAR, Tensors, encode, lora_tensors, module_sizes, np, write_adapter, write_safetensors

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


CONFIG_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "another PEFT method": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "no PEFT method": ({"peft_type": None}, "peft_type is None"),
    "rank 0": ({"r": 0}, "r is 0"),
    "a negative rank": ({"r": -4}, "r is -4"),
    "rank as text": ({"r": "4"}, "r is '4'"),
    "rank true": ({"r": True}, "r is True: it must be the rank"),
    "a fractional rank": ({"r": 4.0}, "r is 4.0"),
    "a rank that is not the weights'": ({"r": 8}, "r is 8, so A must be"),
    "a rank above the limit": ({"rank": 32}, "r is 32, base tiny takes up to 16: .* raise lora.max_rank"),
    "alpha 0": ({"lora_alpha": 0}, "lora_alpha is 0"),
    "alpha missing": ({"lora_alpha": None}, "lora_alpha is None"),
    "alpha as text": ({"lora_alpha": "16"}, "lora_alpha is '16'"),
    "alpha true": ({"lora_alpha": True}, "lora_alpha is True"),
    "alpha huge": ({"lora_alpha": 10**400}, "lora_alpha is "),
    "alpha infinite": ({"lora_alpha": float("inf")}, "not valid JSON"),
    "biases": ({"bias": "lora_only"}, "bias is 'lora_only'"),
    "rsLoRA as text": ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
    "DoRA": ({"use_dora": True}, "use_dora is True: DoRA is not served"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
    "LoRA bias": ({"lora_bias": True}, "lora_bias is True"),
    "a rank pattern": ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
    "an alpha pattern": ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern is"),
    "replicated layers": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is"),
    "trained tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
    "target parameters": ({"target_parameters": ["experts.up"]}, "target_parameters is"),
    "activated LoRA": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is"),
    "QA-LoRA": ({"use_qalora": True}, "use_qalora is True"),
    "Arrow": ({"arrow_config": {"top_k": 3}}, "arrow_config is"),
    "block-diagonal": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is"),
    "KaSA": ({"kasa_config": {"beta": 0.1}}, "kasa_config is"),
    "Monte Carlo": ({"monteclora_config": {"num_samples": 4}}, "monteclora_config is"),
    "VeLoRA": ({"velora_config": {"num_groups": 4}}, "velora_config is"),
    "fan in, fan out": ({"fan_in_fan_out": True}, "fan_in_fan_out is true"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_16"}, "'pissa_niter_16'.*path_initial_model_for_weight_conversion"),
    "OLoRA": ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
    "CorDA": ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, "path_initial_model_for_weight_conversion"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
    "an unknown start": ({"init_lora_weights": "magic"}, "init_lora_weights is 'magic'"),
    "a field nobody knows": ({"use_magic": True}, "'use_magic' is True: the field is not known here"),
    "a classifier": ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
    "no targets": ({"target_modules": None}, "target_modules is None"),
    "empty targets": ({"target_modules": []}, r"target_modules is \[\]"),
    "targets of numbers": ({"target_modules": [1]}, r"target_modules is \[1\]"),
    "a target without weights": ({"target_modules": ["q_proj", "k_proj", "v_proj"]}, "layers.0.self_attn.k_proj.* are adapted, and"),
    "a layer without weights": ({"sizes": module_sizes(1)}, "layers.1.self_attn.q_proj.* nothing for them"),
    "layers as text": ({"layers_to_transform": "0"}, "layers_to_transform is '0'"),
    "exclusions of numbers": ({"exclude_modules": [1]}, r"exclude_modules is \[1\]"),
    "a base that is no name": ({"base_model_name_or_path": 7}, "base_model_name_or_path is 7"),
    "another architecture": (
        {"base_model_name_or_path": None, "auto_mapping": {"base_model_class": "MistralForCausalLM"}},
        "trained on a 'MistralForCausalLM', base tiny is a LlamaForCausalLM",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "says"), CONFIG_FAULTS.values(), ids=CONFIG_FAULTS)
def test_a_config_that_would_not_be_honoured_is_refused(tmp_path: Path, made: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidAdapter, match=says):
        inspect(write_adapter(tmp_path, **made), [TINY])


def changed(key: str, to: str | None = None, *, info: tuple[str, tuple[int, ...], bytes] | None = None) -> Callable[[Tensors], None]:
    """A change to the weights: a tensor of Q0 renamed, removed (to "") or replaced."""

    def change(tensors: Tensors) -> None:
        old = tensors.pop(f"{PREFIX}{Q0}.{key}")
        if to != "":
            tensors[to or f"{PREFIX}{Q0}.{key}"] = info or old

    return change


def with_tensor(name: str, shape: tuple[int, ...] = (4, 32)) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: ("F32", shape, encode(np.ones(shape), "F32"))})


def floats(shape: tuple[int, ...], value: float = 1.0, dtype: str = "F32") -> tuple[str, tuple[int, ...], bytes]:
    return dtype, shape, encode(np.full(shape, value), dtype)


def one_value(key: str, value: float, dtype: str) -> Callable[[Tensors], None]:
    """One value of many set, the last."""

    def change(tensors: Tensors) -> None:
        _, shape, data = tensors[f"{PREFIX}{Q0}.{key}"]
        width = 4 if dtype == "F32" else 2
        tensors[f"{PREFIX}{Q0}.{key}"] = (dtype, shape, bytes(len(data) // 4 * width - width) + encode(np.array([value]), dtype))

    return change


A, B = "lora_A.weight", "lora_B.weight"
WEIGHT_FAULTS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "no tensors": (lambda tensors: tensors.clear(), "holds no tensors"),
    "B missing": (changed(B, ""), rf"must come in pairs: {Q0} \(only lora_A\)"),
    "A missing": (changed(A, ""), r"\(only lora_B\)"),
    "an adapter's name in the key": (changed(A, f"{PREFIX}{Q0}.lora_A.default.weight"), "carry an adapter's name"),
    "no prefix": (changed(A, f"{Q0}.{A}"), "lack PEFT's prefix"),
    "another ending": (changed(A, f"{PREFIX}{Q0}.lora_down.weight"), "are no LoRA weights"),
    "a magnitude": (with_tensor(f"{PREFIX}{Q0}.lora_magnitude_vector", (32,)), "belong to DoRA"),
    "a bias of B": (with_tensor(f"{PREFIX}{Q0}.lora_B.bias", (32,)), "are biases"),
    "an embedding": (with_tensor(f"{PREFIX}model.embed_tokens.lora_embedding_A"), "adapt an embedding"),
    "a base embedding": (with_tensor(f"{PREFIX}model.embed_tokens.base_layer.weight"), "are the base model's weights"),
    "a saved module": (with_tensor(f"{PREFIX}lm_head.modules_to_save.weight"), "are whole modules"),
    "three dimensions": (changed(A, info=floats((4, 32, 1))), "must have two dimensions"),
    "whole numbers": (changed(A, info=("I32", (4, 32), bytes(512))), "weights must be F32, F16 or BF16: .* is I32"),
    "double precision": (changed(A, info=("F64", (4, 32), bytes(1024))), "is F64"),
    "one module of another rank": (changed(A, info=floats((8, 32))), rf"{Q0} has A \[8, 32\] and B \[32, 4\]"),
    "A of another width": (changed(A, info=floats((4, 16))), f"{Q0} is for 32 out, 16 in, the base has 32 out, 32 in"),
    "B of another width": (changed(B, info=floats((16, 4))), "16 out, 32 in"),
    "transposed": (changed(A, info=floats((32, 4))), "A must be"),
    "NaN": (one_value(A, float("nan"), "F32"), f"NaN or infinity: {Q0}.lora_A"),
    "infinity": (one_value(B, float("-inf"), "F32"), f"NaN or infinity: {Q0}.lora_B"),
    "NaN in F16": (one_value(A, float("nan"), "F16"), "NaN or infinity"),
    "infinity in BF16": (one_value(B, float("inf"), "BF16"), "NaN or infinity"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says"), WEIGHT_FAULTS.values(), ids=WEIGHT_FAULTS)
def test_weights_that_would_be_served_wrong_are_refused(tmp_path: Path, change: Callable[[Tensors], None], says: str) -> None:
    sizes = {module: size for module, size in module_sizes().items() if module.endswith(("q_proj", "v_proj"))}
    tensors = lora_tensors(sizes, rank=4)
    change(tensors)
    write_safetensors(write_adapter(tmp_path) / "adapter_model.safetensors", tensors)
    with pytest.raises(InvalidAdapter, match=says):
        inspect(tmp_path, [TINY])


def test_a_module_that_the_base_lacks_is_refused_with_what_it_has(tmp_path: Path) -> None:
    write_adapter(tmp_path, targets=["c_attn"], sizes={"transformer.h.0.attn.c_attn": (96, 32)})
    with pytest.raises(
        InvalidAdapter, match=r"base tiny lacks or cannot adapt: transformer.h.0.attn.c_attn; it adapts down_proj, gate_proj"
    ):
        inspect(tmp_path, [TINY])


def test_a_model_without_its_head_is_refused_with_the_remedy(tmp_path: Path) -> None:
    sizes = {module.removeprefix("model."): size for module, size in module_sizes().items()}
    with pytest.raises(InvalidAdapter, match="train through AutoModelForCausalLM"):
        inspect(write_adapter(tmp_path, sizes=sizes), [TINY])


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


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "x.pkl"])
def test_a_pickle_beside_the_adapter_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    assert f"'{name}' may hold a pickle" in refused(folder).message


@pytest.mark.parametrize("name", ["run.py", "run.sh", "lib.so", "noextension", "model.gguf"])
def test_a_file_that_no_adapter_needs_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    assert f"'{name}' is not a file that an adapter needs" in refused(folder).message


def test_a_pickle_instead_of_the_weights_says_how_to_save(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    message = refused(folder).message
    assert "adapter_model.safetensors is missing" in message
    assert "safe_serialization=True" in message


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_or_empty_file_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    assert f"{name} is empty" in refused(folder).message
    (folder / name).unlink()
    assert f"{name} is missing" in refused(folder).message


def test_folders_links_and_pipes_are_refused_and_not_followed(folder: Path) -> None:
    (folder / "checkpoint-1").mkdir()
    (folder / "link.json").symlink_to("/etc/passwd")
    (folder / "adapter_config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")
    message = refused(folder).message
    for name in ("checkpoint-1", "link.json", "adapter_config.json"):
        assert f"'{name}' is not a regular file" in message


def test_other_weights_the_stores_names_and_great_files_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"x")
    (folder / "manifest.json").write_bytes(b"{}")
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(65 << 20)
    message = refused(folder).message
    assert "'model.safetensors' would be ignored" in message
    assert "'manifest.json' is kept for the store" in message
    assert f"'tokenizer.json' has {65 << 20} bytes" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff{}", "not UTF-8"),
        (b'{"r": 4, "r": 8}', "the key 'r' stands twice"),
        (b'{"lora_alpha": NaN}', "NaN is not a number"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b" " * (2 << 20), "larger than"),
        (b'{"r": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_config_that_is_no_plain_json_object_is_refused(folder: Path, text: bytes, says: str) -> None:
    (folder / "adapter_config.json").write_bytes(text)
    assert says in refused(folder).message


def test_truncated_weights_are_refused(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "adapter_model.safetensors is truncated" in refused(folder).message


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
