"""base_model.py: a model folder becomes the profile that adapters are checked against."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from adapters_store.base_model import UNKNOWN_SIZE, BaseProfile, load_profile, read_profile, save_profile
from adapters_store.errors import InternalError, InvalidRequest
from adapters_store.local import LocalStore
from tests.adapters_store.adapters import ATTENTION, module_sizes, write_base, write_safetensors


def profile_of(folder: Path, adaptable: tuple[str, ...] | None = None) -> BaseProfile:
    return read_profile(folder, id="tiny", names=("org/Tiny", "tiny"), max_rank=16, adaptable=adaptable)


@pytest.mark.parametrize("shards", [1, 3])
def test_every_linear_module_is_in_the_profile_with_its_sizes(tmp_path: Path, shards: int) -> None:
    profile = profile_of(write_base(tmp_path, shards=shards))
    assert profile == BaseProfile("tiny", ("tiny", "org/Tiny"), "LlamaForCausalLM", 16, module_sizes())


def test_only_what_the_engine_can_adapt_is_in_the_profile(tmp_path: Path) -> None:
    write_base(tmp_path)
    by_suffix = profile_of(tmp_path, ATTENTION)
    assert by_suffix.modules == {name: size for name, size in module_sizes().items() if "self_attn" in name}
    by_name = profile_of(tmp_path, ("model.layers.1.mlp.up_proj",))
    assert list(by_name.modules) == ["model.layers.1.mlp.up_proj"]


def test_embeddings_heads_and_experts_are_never_in_the_profile(tmp_path: Path) -> None:
    write_base(tmp_path)
    write_safetensors(tmp_path / "more.safetensors", {"model.layers.0.mlp.experts.3.up_proj.weight": ("F16", (2, 3), bytes(12))})
    profile = profile_of(tmp_path, ("embed_tokens", "lm_head", "up_proj"))
    assert {name.rpartition(".")[2] for name in profile.modules} == {"up_proj"}
    assert not any("experts" in name for name in profile.modules)


def test_only_matrices_are_in_the_profile(tmp_path: Path) -> None:
    write_base(tmp_path)
    more = {"model.layers.0.conv.weight": ("F16", (2, 3, 1), bytes(12)), "model.layers.0.gain.weight": ("F16", (2,), bytes(4))}
    write_safetensors(tmp_path / "more.safetensors", more)
    assert profile_of(tmp_path).modules == module_sizes()


@pytest.mark.parametrize(("stored", "dtype", "bytes_each"), [("qweight", "I32", 4), ("weight", "U8", 1), ("weight_packed", "I32", 4)])
def test_packed_weights_of_a_quantised_model_have_unknown_sizes(tmp_path: Path, stored: str, dtype: str, bytes_each: int) -> None:
    write_base(tmp_path, config={"quantization_config": {"quant_method": "some"}})
    data = bytes(8 * bytes_each)
    write_safetensors(tmp_path / "more.safetensors", {f"model.layers.9.mlp.up_proj.{stored}": (dtype, (4, 2), data)})
    profile = profile_of(tmp_path)
    assert profile.modules["model.layers.9.mlp.up_proj"] == (UNKNOWN_SIZE, UNKNOWN_SIZE)
    assert profile.modules["model.layers.0.mlp.up_proj"] == (64, 32)


def test_a_profile_is_the_same_after_json_and_after_pickle(tmp_path: Path) -> None:
    profile = profile_of(write_base(tmp_path))
    assert BaseProfile.from_json(profile.to_json()) == profile
    assert pickle.loads(pickle.dumps(profile)) == profile


def test_a_saved_profile_is_loaded_by_its_id(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    assert load_profile(store, "org/tiny") is None
    profile = read_profile(write_base(tmp_path / "model"), id="org/tiny", names=(), max_rank=16, adaptable=None)
    save_profile(store, profile)
    assert load_profile(store, "org/tiny") == profile
    assert [info.key for info in store.list("bases/").objects] == ["bases/org%2Ftiny.json"]


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"id":"a","names":[],"architecture":"x","max_rank":8,"modules":{"q":[1]}}'])
def test_a_damaged_profile_in_the_store_says_what_to_do(tmp_path: Path, data: bytes) -> None:
    store = LocalStore(tmp_path)
    store.put("bases/tiny.json", data)
    with pytest.raises(InternalError, match="restart its replicas"):
        load_profile(store, "tiny")


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"tiny has no usable config.json"):
        profile_of(tmp_path)


def test_a_model_without_safetensors_is_refused(tmp_path: Path) -> None:
    write_base(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InvalidRequest, match="has no safetensors"):
        profile_of(tmp_path)


@pytest.mark.parametrize("shard", ["absent.safetensors", "../model.safetensors"])
def test_an_index_that_names_an_absent_or_outside_shard_is_refused(tmp_path: Path, shard: str) -> None:
    folder = write_base(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(InvalidRequest, match="lacks the shard"):
        profile_of(folder)


def test_a_model_with_nothing_to_adapt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no module that LoRA can adapt"):
        profile_of(write_base(tmp_path), ("qkv_proj",))
