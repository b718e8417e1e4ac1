"""`lorikeet doctor`: what it says of ports, stores, packages and GPUs, good and bad."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapters_store.local import LocalStore
from adapters_store.objects import ObjectPage
from cluster import doctor, packages, ports
from configs.load import load
from configs.settings import Settings
from tests.s3 import S3Endpoint, moto_server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_of(tmp_path)


def settings_of(home: Path, *words: str) -> Settings:
    return load(None, [f"home={home}", f"gateway.port={ports.pick_free(1)[0]}", *words])


def test_a_good_machine_has_no_failure(settings: Settings) -> None:
    checks = doctor.examine(settings)
    assert [check.name for check in checks] == ["python", "packages", "port", "memory", "gpu", "disk", "store"]
    assert [check for check in checks if check.state == "fail"] == []
    doctor.require(settings)


def test_a_taken_port_fails_with_its_holder_and_another_port(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        settings = settings_of(tmp_path, f"gateway.port={port}")
        check = doctor.check_port(settings)
        assert check.state == "fail"
        assert f"port {port} is in use by pid {os.getpid()}" in check.detail
        assert "gateway.port=" in check.remedy
        with pytest.raises(doctor.CheckFailed, match=str(port)):
            doctor.require(settings)


def test_a_taken_port_is_a_joined_clusters_own(tmp_path: Path) -> None:
    """Its HAProxy holds the port on while the supervisor is gone: the next `up` must come through."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        settings = settings_of(tmp_path, f"gateway.port={listener.getsockname()[1]}", "ray.address=auto")
        check = doctor.check_port(settings)
        assert (check.state, check.remedy) == ("ok", "")
        assert "Ray cluster at auto" in check.detail
        doctor.require(settings)


def test_a_store_that_is_away_fails_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in S3_VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ports.pick_free(1)[0]}")
    check = doctor.check_store(settings_of(tmp_path, "store.url=s3://adapters/x", "store.timeout_seconds=3"))
    assert (check.state, "AWS_ENDPOINT_URL" in check.remedy) == ("fail", True)


def test_a_store_whose_folder_cannot_be_made_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.check_store(settings_of(tmp_path, f"store.url=file://{tmp_path}/file/store")).state == "fail"


def test_a_bucket_that_honours_conditional_writes_is_ok_and_a_missing_one_fails(
    s3: S3Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    s3.create_bucket("adapters")
    good = doctor.check_store(settings_of(tmp_path, "store.url=s3://adapters/x"))
    assert good.state == "ok", good
    assert s3.client().list_objects_v2(Bucket="adapters").get("KeyCount") == 0
    assert doctor.check_store(settings_of(tmp_path, "store.url=s3://nothing/x")).state == "fail"


class Forgetful(LocalStore):
    """A store like the endpoints that take conditional headers and ignore them."""

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        return super().put(key, data)


def test_a_store_that_ignores_conditions_fails(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "open_store", lambda url, timeout_seconds: Forgetful(tmp_path / "forgetful"))
    check = doctor.check_store(settings)
    assert (check.state, "ignores conditional writes" in check.detail) == ("fail", True)


class ByFolder(LocalStore):
    """A store like those that list folder by folder."""

    def list(self, prefix: str, *, delimiter: str | None = None, start_after: str | None = None, limit: int = 1000) -> ObjectPage:
        page = super().list(prefix, delimiter=delimiter, start_after=start_after, limit=limit)
        return replace(page, objects=tuple(sorted(page.objects, key=lambda info: info.key.split("/"))))


def test_a_store_that_lists_out_of_order_is_a_warning(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ByFolder(tmp_path / "by-folder")
    monkeypatch.setattr(doctor, "open_store", lambda url, timeout_seconds: store)
    check = doctor.check_store(settings)
    assert (check.state, "folder by folder" in check.detail) == ("warn", True)
    assert store.list("").objects == ()


def test_a_model_on_gpus_fails_where_there_are_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path, "models.0.resources.gpus=2", "models.0.resources.tensor_parallel=2")
    driver(tmp_path, monkeypatch, "GPU 0: NVIDIA A10G (UUID: GPU-1)")
    check = doctor.check_gpu(settings)
    assert (check.state, check.detail) == ("fail", "1 GPUs found, 2 needed by a replica")
    driver(tmp_path, monkeypatch, "GPU 0: NVIDIA A10G (UUID: GPU-1)\nGPU 1: NVIDIA A10G (UUID: GPU-2)")
    assert doctor.check_gpu(settings) == doctor.Check("gpu", "ok", "GPU 0: NVIDIA A10G; GPU 1: NVIDIA A10G")


def test_little_memory_is_a_warning_that_counts_the_kv_cache(tmp_path: Path) -> None:
    check = doctor.check_memory(settings_of(tmp_path, "models.0.environment.VLLM_CPU_KVCACHE_SPACE='100000'"))
    assert check.state == "warn"
    assert "100003.0 GiB needed" in check.detail


def test_packages_are_compared_with_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text("pytest==0.0.1\n    # via something==1\nno-such-package-here==1.0 ; python_version > '3'\nray[serve]==2.60.0\n")
    missing, differing = packages.check_packages(lock)
    assert missing == ["no-such-package-here"]
    assert [line.partition(" ")[0] for line in differing] == ["pytest"]


S3_VARIABLES = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def s3() -> Iterator[S3Endpoint]:
    with moto_server() as endpoint:
        yield endpoint


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, listing: str) -> None:
    """Put an `nvidia-smi` that lists these GPUs on the path."""
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\ncat <<END\n{listing}\nEND\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
