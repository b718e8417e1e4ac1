"""Imports from a real S3 endpoint and a real hub over HTTP: what is fetched, what is passed over, what is refused and why."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from adapters_store.errors import InvalidAdapter, InvalidRequest, NotFound, PermissionDenied, TooLarge, Unavailable
from adapters_store.imports import HubSource, Imports, S3Source, parse_source
from configs.settings import ImportSettings, UploadSettings
from tests.hub import COMMIT, TOKEN, hub
from tests.s3 import S3Endpoint, free_port

FILES = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": b"weights" * 1000, "chat_template.jinja": b"{{ x }}"}
BESIDE = {"optimizer.pt": b"x" * 50_000, "checkpoint-10/adapter_config.json": b"{}", ".gitattributes": b"x", "runs/log.txt": b"x"}
TAKEN = {**FILES, ".gitattributes": b"x"}
STORE = "s3://imports/store"

Fetch = Callable[..., dict[str, bytes]]


@pytest.fixture(scope="module")
def hub_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hub")
    repositories = {
        "acme/support": {**FILES, **BESIDE},
        "private/support": FILES,
        "acme/pickled": {"adapter_config.json": b"{}", "adapter_model.bin": b"x"},
        "acme/base": {"config.json": b"{}", "model.safetensors": b"x"},
        "slow/support": FILES,
        "acme/lying": {**FILES, "growing.json": b"x" * 200_000},
    }
    for repository, files in repositories.items():
        for name, data in files.items():
            path = folder / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    with hub(folder) as url:
        yield url


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    """Imports a source with given settings; the files as they arrived."""

    def run(source: str, *, max_bytes: int = 100_000, **settings: object) -> dict[str, bytes]:
        into = tmp_path / f"into-{time.monotonic_ns()}"
        into.mkdir()
        uploads = UploadSettings(max_bytes=max_bytes, max_files=10)
        Imports(STORE, ImportSettings.model_validate(settings), uploads).fetch(source, into)
        return {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}

    return run


@pytest.fixture(scope="module")
def bucket(s3_endpoint: S3Endpoint) -> str:
    s3_endpoint.create_bucket("imports")
    client = s3_endpoint.client()
    for folder in ("teams/support", "store/adapters/acme/secret"):
        for name, data in {**FILES, **BESIDE}.items():
            client.put_object(Bucket="imports", Key=f"{folder}/{name}", Body=data)
    client.put_object(Bucket="imports", Key="teams-other/adapter_config.json", Body=b"{}")
    return "s3://imports"


def test_an_adapter_comes_from_a_bucket_without_what_lies_beside_it(bucket: str, fetch: Fetch) -> None:
    assert fetch(f"{bucket}/teams/support", buckets=[bucket]) == TAKEN
    assert fetch(f"{bucket}/teams/support/", buckets=[f"{bucket}/teams/"]) == TAKEN


@pytest.mark.parametrize("allowed", [[], ["s3://other"], ["s3://imports/teams/support/deeper"], ["s3://imports/teams/sup"]])
def test_a_bucket_that_is_not_named_is_refused(bucket: str, fetch: Fetch, allowed: list[str]) -> None:
    with pytest.raises(PermissionDenied, match=r"imports\.buckets"):
        fetch(f"{bucket}/teams/support", buckets=allowed)


def test_the_store_itself_is_no_source(bucket: str, fetch: Fetch) -> None:
    with pytest.raises(PermissionDenied, match="store itself"):
        fetch(f"{bucket}/store/adapters/acme/secret", buckets=[bucket])


def test_a_folder_without_an_adapter_is_told(bucket: str, fetch: Fetch) -> None:
    with pytest.raises(NotFound, match="no files"):
        fetch(f"{bucket}/teams/none", buckets=[bucket])
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.safetensors is missing"):
        fetch(f"{bucket}/teams-other", buckets=[bucket])


@pytest.mark.usefixtures("s3_endpoint")
def test_a_bucket_that_does_not_exist_is_unavailable_in_words_of_its_own(fetch: Fetch) -> None:
    with pytest.raises(Unavailable, match="s3://nowhere/x cannot be read") as caught:
        fetch("s3://nowhere/x", buckets=["s3://nowhere"])
    assert "store.url" not in caught.value.message


def test_what_is_too_large_is_refused_before_it_is_fetched(bucket: str, fetch: Fetch, hub_url: str) -> None:
    for source in (f"{bucket}/teams/support", "hf://acme/support"):
        with pytest.raises(TooLarge, match=r"uploads\.max_bytes"):
            fetch(source, buckets=[bucket], hub_url=hub_url, max_bytes=5000)


@pytest.mark.parametrize("source", ["hf://acme/support", "hf://acme/support@v1", f"hf://acme/support@{COMMIT}"])
def test_an_adapter_comes_from_a_hub_without_what_lies_beside_it(fetch: Fetch, hub_url: str, source: str) -> None:
    assert fetch(source, hub_url=hub_url) == TAKEN


def test_a_hubs_address_may_come_from_the_environment(fetch: Fetch, hub_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub_url)
    assert fetch("hf://acme/support") == TAKEN


def test_what_was_imported_is_pinned_to_its_commit(tmp_path: Path, hub_url: str) -> None:
    imports = Imports(STORE, ImportSettings(hub_url=hub_url), UploadSettings())
    assert imports.fetch("hf://acme/support@v1", tmp_path) == f"hf://acme/support@{COMMIT}"


def test_a_private_repository_takes_the_token_that_the_settings_point_to(
    fetch: Fetch, hub_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", TOKEN)  # of whoever runs the gateway: not taken by itself
    with pytest.raises(NotFound, match=r"imports\.hub_token"):
        fetch("hf://private/support", hub_url=hub_url)
    monkeypatch.setenv("SECRET_OF_THE_HUB", TOKEN)
    assert fetch("hf://private/support", hub_url=hub_url, hub_token="env:SECRET_OF_THE_HUB") == FILES
    (tmp_path / "secret").write_text(TOKEN + "\n")
    assert fetch("hf://private/support", hub_url=hub_url, hub_token=f"file:{tmp_path}/secret") == FILES
    assert TOKEN not in caplog.text
    with pytest.raises(Unavailable, match="holds no token"):
        fetch("hf://acme/support", hub_url=hub_url, hub_token="env:NOT_SET")


def test_a_token_in_the_settings_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValidationError, match="env:NAME or file:/path") as caught:
        ImportSettings(hub_token=TOKEN)
    assert all(TOKEN not in error["msg"] for error in caught.value.errors())


def test_only_named_owners_are_imported_from(fetch: Fetch, hub_url: str) -> None:
    assert fetch("hf://acme/support", hub_url=hub_url, hub_owners=["acme"]) == TAKEN
    for owners in ([], ["other"]):
        with pytest.raises(PermissionDenied, match=r"imports\.hub_owners"):
            fetch("hf://acme/support", hub_url=hub_url, hub_owners=owners)


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("hf://acme/none", NotFound, "hf://acme/none is not at"),
        ("hf://acme/support@v9", NotFound, "no revision 'v9'"),
        ("hf://acme/pickled", InvalidAdapter, "safe_serialization"),
        ("hf://acme/base", InvalidAdapter, "holds no adapter"),
    ],
)
def test_what_a_hub_does_not_have_is_told(fetch: Fetch, hub_url: str, source: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        fetch(source, hub_url=hub_url)


def test_a_file_that_is_longer_than_the_hub_said_is_stopped(fetch: Fetch, hub_url: str) -> None:
    with pytest.raises((TooLarge, Unavailable)):
        fetch("hf://acme/lying", hub_url=hub_url, max_bytes=50_000)


@pytest.mark.parametrize("hub_at", ["nobody listens", "it does not answer"])
def test_a_hub_that_is_away_is_told_at_once(fetch: Fetch, hub_url: str, hub_at: str) -> None:
    url, source = (f"http://127.0.0.1:{free_port()}", "hf://acme/support") if hub_at == "nobody listens" else (hub_url, "hf://slow/support")
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"cannot be reached .*imports\.hub_url") as caught:
        fetch(source, hub_url=url, connect_timeout_seconds=0.5)
    assert source in caught.value.message and "adapters push" in caught.value.message
    assert time.monotonic() - began < 15, "one start of a process and one timeout"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("s3://bucket", S3Source("bucket", "")),
        ("s3://bucket/a/b/", S3Source("bucket", "a/b")),
        ("hf://acme/support", HubSource("acme", "support", None)),
        ("hf://acme/support@refs/pr/1", HubSource("acme", "support", "refs/pr/1")),
    ],
)
def test_sources_are_read(text: str, parsed: S3Source | HubSource) -> None:
    assert parse_source(text) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "", "support", "file:///etc/passwd", "http://169.254.169.254/latest", "https://x/y", "s3://", "s3:///x", "s3://a/../b", "s3://b/%2e%2e",
        "s3://user@bucket/x", "s3://bucket/x?y", "s3://bucket/a//b", "hf://acme", "hf://acme/a/b", "hf://../x", "hf://acme/x@", "hf://acme/x@../y",
        "hf://acme/x@a b", "S3://bucket/x", "s3://bucket/\n",
    ],
)  # fmt: skip
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="s3://bucket/path or hf://owner/name"):
        parse_source(text)
