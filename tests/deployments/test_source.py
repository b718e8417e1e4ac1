"""Where weights come from: every source ends in a folder, a damaged one in a sentence that says what to do."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from adapters_store.errors import InvalidRequest, Unavailable
from adapters_store.objects import open_store
from configs.settings import ModelSettings
from deployments.engine.source import EMBEDDED_FOLDER, fetch_model
from tests.s3 import moto_server

FILES = {"config.json": b"{}", "model.safetensors": bytes(1000), "tokenizer/tokenizer.json": b"[]"}


def model(source: str) -> ModelSettings:
    return ModelSettings(id="org/llama", source=source)


def fill(folder: Path) -> Path:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    folder = fill(tmp_path / "weights")
    assert fetch_model(model(str(folder)), tmp_path / "home") == folder
    assert not (tmp_path / "home").exists(), "it was copied"


def test_the_embedded_model_lies_in_home(tmp_path: Path) -> None:
    folder = fill(tmp_path / EMBEDDED_FOLDER)
    assert fetch_model(model("embedded"), tmp_path) == folder


@pytest.mark.parametrize("content", [None, {"model.safetensors": b"x"}])
def test_a_folder_without_a_model_is_refused_by_its_setting(tmp_path: Path, content: dict[str, bytes] | None) -> None:
    for name, data in (content or {}).items():
        (tmp_path / name).write_bytes(data)
    source = str(tmp_path if content else tmp_path / "nothing")
    with pytest.raises(InvalidRequest, match=r"models\.org/llama\.source is .*config\.json"):
        fetch_model(model(source), tmp_path / "home")


def test_a_hub_that_cannot_be_reached_is_said_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("secret-token")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=unreachable))
    with pytest.raises(Unavailable, match=r"'org/weights' could not be fetched.*HF_TOKEN") as raised:
        fetch_model(model("org/weights"), tmp_path)
    assert "secret-token" not in raised.value.message


def test_a_hub_id_is_downloaded_into_home_without_pickled_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(source: str, *, cache_dir: Path, ignore_patterns: list[str]) -> str:
        asked[source] = (cache_dir, ignore_patterns)
        return str(tmp_path / "snapshot")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    assert fetch_model(model("org/weights"), tmp_path) == tmp_path / "snapshot"
    cache_dir, ignored = asked["org/weights"]
    assert cache_dir == tmp_path / "models" / "hub", "they would be gone with the container, or fill its disk"
    assert "*.bin" in ignored


def test_a_bucket_is_downloaded_once_for_all_replicas_of_a_node(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with moto_server() as s3, s3.in_environment():
        s3.create_bucket("models")
        store = open_store("s3://models/base")
        for name, data in FILES.items():
            store.put(name, data)
        folders: list[Path] = []
        starting = [threading.Thread(target=lambda: folders.append(fetch_model(model("s3://models/base"), tmp_path))) for _ in range(4)]
        with caplog.at_level("INFO", logger="deployments"):
            for thread in starting:
                thread.start()
            for thread in starting:
                thread.join(60)
        assert len(folders) == 4 and len(set(folders)) == 1
        assert {name: (folders[0] / name).read_bytes() for name in FILES} == FILES
        assert sum(record.getMessage() == "model_file_ready" for record in caplog.records) == len(FILES)
        store.delete("config.json")
        assert fetch_model(model("s3://models/base"), tmp_path) == folders[0], "a complete folder asked the store again"


def test_a_bucket_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with moto_server() as s3, s3.in_environment():
        s3.create_bucket("models")
        with pytest.raises(InvalidRequest, match=r"holds 0 objects and no config\.json"):
            fetch_model(model("s3://models/empty"), tmp_path)


def test_an_interrupted_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with moto_server() as s3, s3.in_environment():
        s3.create_bucket("models")
        store = open_store("s3://models/base")
        for name, data in FILES.items():
            store.put(name, data)
        folder = tmp_path / "models" / "org--llama"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
        assert fetch_model(model("s3://models/base"), tmp_path) == folder
        assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
