"""A push against a real gateway over real HTTP: what arrives, what is not sent again, what a bad network does to it."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from adapters_store.names import ModelRef
from adapters_store.objects import open_store
from adapters_store.registry import Registry
from cluster import push
from cluster.client import ApiError, Client
from tests.cutting_proxy import CuttingProxy, cutting_proxy
from tests.deployments.gateway import BASE, KEY
from tests.deployments.served import Served, served

MIB = 1 << 20
PART_BYTES = 256 << 10
LARGE_BYTES = int(os.environ.get("LORIKEET_LARGE_MIB", "200")) * MIB  # 1024: a gigabyte
LARGE_PART_BYTES = 8 * MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("gateway"), uploads={"part_bytes": PART_BYTES, "max_bytes": 8 * MIB}) as running:
        yield running


@pytest.fixture
def proxy(server: Served) -> Iterator[CuttingProxy]:
    with cutting_proxy(server.port) as running:
        yield running


@pytest.fixture
def client(proxy: CuttingProxy) -> Iterator[Client]:
    with Client(proxy.url, KEY) as connected:
        yield connected


@pytest.fixture
def adapter(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """3 MB of weights that no other test has, and what save_pretrained and macOS put beside them."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(f'{{"made_for": "{request.node.name}"}}')
    (folder / "adapter_model.safetensors").write_bytes(hashlib.sha256(request.node.name.encode()).digest() * 100_000)
    (folder / ".DS_Store").write_bytes(b"not of the adapter")
    return folder


def stored(url: str, name: str, folder: Path) -> dict[str, str]:
    """sha256 of every file of `name`'s production version, as the store has it."""
    store = open_store(url)
    found = Registry(store).read(ModelRef.parse(name))
    assert {file.name: hash_of(folder / file.name) for file in found.files} == {file.name: file.sha256 for file in found.files}
    return {file.name: file.sha256 for file in found.files}


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hash_of(path) for path in folder.iterdir() if not path.name.startswith(".")}


def test_push_publishes_every_file_but_hidden_ones(client: Client, adapter: Path) -> None:
    pushed = client.push(adapter, "acme", "first")
    assert pushed.id.startswith("acme/first@") and (pushed.base, pushed.rank, pushed.created) == (BASE, 8, True)
    assert pushed.size_bytes == sum(path.stat().st_size for path in adapter.iterdir() if not path.name.startswith("."))
    shown = client.show("acme", "first")
    assert [f"acme/first@{version['version']}" for version in shown["versions"]] == [pushed.id]


def test_push_of_the_same_content_sends_nothing_and_says_so(client: Client, proxy: CuttingProxy, adapter: Path) -> None:
    first = client.push(adapter, "acme", "same")
    before = proxy.sent_bytes
    again = client.push(str(adapter), "acme", "same")
    assert (again.id, again.created) == (first.id, False)
    assert proxy.sent_bytes - before < 10_000


def test_push_sends_only_the_files_that_changed(client: Client, proxy: CuttingProxy, adapter: Path) -> None:
    client.push(adapter, "acme", "changed")
    before = proxy.sent_bytes
    (adapter / "adapter_config.json").write_text('{"lora_alpha": 32}')
    assert client.push(adapter, "acme", "changed").created
    assert proxy.sent_bytes - before < 10_000


def test_progress_never_goes_back_and_ends_at_the_whole(client: Client, proxy: CuttingProxy, adapter: Path) -> None:
    proxy.cut_after_bytes = [MIB, 2 * MIB]
    seen: list[tuple[int, int]] = []
    size_bytes = client.push(adapter, "acme", "progress", lambda there, total: seen.append((there, total))).size_bytes
    assert proxy.cuts == 2
    assert seen == sorted(seen) and seen[-1] == (size_bytes, size_bytes) and len(seen) > 10


def test_a_push_that_was_stopped_goes_on_where_it_was(proxy: CuttingProxy, adapter: Path) -> None:
    class Stop(Exception):
        pass

    def stop_half_way(there: int, total: int) -> None:
        if there > total // 2:
            raise Stop

    with Client(proxy.url, KEY) as client, pytest.raises(Stop):
        client.push(adapter, "acme", "stopped", stop_half_way)
    before = proxy.sent_bytes
    with Client(proxy.url, KEY) as client:
        assert client.push(adapter, "acme", "stopped").created
    assert proxy.sent_bytes - before < 2_200_000, "what had arrived was sent again"


def test_a_push_goes_on_through_another_gateway_when_the_first_is_lost(tmp_path: Path, adapter: Path) -> None:
    store_url = (tmp_path / "store").as_uri()
    limits = {"part_bytes": PART_BYTES}
    with (
        served(tmp_path / "a", store_url=store_url, uploads=limits) as a,
        served(tmp_path / "b", store_url=store_url, uploads=limits) as b,
        cutting_proxy(a.port) as proxy,
        Client(proxy.url, KEY) as client,
    ):

        def lose_half_way(there: int, total: int) -> None:
            if there > total // 2 and proxy.to_port == a.port:
                proxy.to_port = b.port
                a.kill()
                proxy.cut()

        assert client.push(adapter, "acme", "moved", lose_half_way).created
        assert proxy.sent_bytes < 5_500_000, "what the first gateway had taken was sent again"
    assert stored(store_url, "acme/moved", adapter) == hashes(adapter)


def test_a_file_that_changes_while_it_is_sent_is_never_published_mixed(client: Client, adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    changed = threading.Event()

    def change(there: int, total: int) -> None:
        if there > total // 2 and not changed.is_set():
            changed.set()
            with weights.open("r+b") as file:  # in place: a file cut to nothing in between would be another error
                file.write(bytes(weights.stat().st_size))

    with pytest.raises(ApiError, match="another sha256") as caught:
        client.push(adapter, "acme", "mixed", change)
    assert caught.value.status == 409
    with pytest.raises(ApiError):
        client.show("acme", "mixed")


@pytest.mark.parametrize(
    ("spoil", "status", "said"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), 400, "adapter_config.json is missing"),
        (lambda folder: (folder / "optimizer.pt").write_bytes(b"x"), 400, "pickle"),
        (lambda folder: (folder / "huge.md").write_bytes(bytes(9 * MIB)), 413, "uploads.max_bytes"),
    ],
)
def test_what_would_be_refused_is_refused_before_it_is_sent(
    client: Client, proxy: CuttingProxy, adapter: Path, spoil, status: int, said: str
) -> None:
    spoil(adapter)
    with pytest.raises(ApiError, match=said) as caught:
        client.push(adapter, "acme", "refused")
    assert caught.value.status == status
    assert proxy.sent_bytes < 10_000


def test_a_server_that_stays_away_is_told_after_the_last_try(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "TRIES", 3)
    with cutting_proxy(1) as proxy, Client(proxy.url, KEY) as client, pytest.raises(ApiError, match="no answer") as caught:
        client.push(adapter, "acme", "away")
    assert caught.value.status == 0


def test_a_wrong_key_is_not_tried_again(proxy: CuttingProxy, adapter: Path) -> None:
    with Client(proxy.url, "wrong-key") as client, pytest.raises(ApiError) as caught:
        client.push(adapter, "acme", "none")
    assert caught.value.status == 401
    assert proxy.sent_bytes < 2_000


def test_a_large_upload_over_a_connection_cut_five_times_arrives_whole_in_little_memory(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    with (folder / "adapter_model.safetensors").open("wb") as weights:
        block = hashlib.sha256(b"weights").digest() * 32768
        for number in range(LARGE_BYTES // MIB):
            weights.write(number.to_bytes(4, "big") + block[4:])
    with served(tmp_path / "gateway", uploads={"part_bytes": LARGE_PART_BYTES}) as server:
        cuts = [LARGE_BYTES * share // 12 for share in (1, 3, 5, 8, 11)]
        with cutting_proxy(server.port, cut_after_bytes=cuts) as proxy, Client(proxy.url, KEY) as client:
            client.models()
            assert httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200
            grown = _Growth(server)
            tracemalloc.start()
            with grown:
                pushed = client.push(folder, "acme", "large")
            _, client_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert (proxy.cuts, pushed.created) == (6, True)  # the sixth is the proxy's own end
        assert stored((tmp_path / "gateway" / "store").as_uri(), "acme/large", folder) == hashes(folder)
        assert proxy.sent_bytes < LARGE_BYTES + 5 * push.PARTS_AT_ONCE * LARGE_PART_BYTES + MIB, "more was sent again than was cut"
        print(f"gateway +{grown.bytes / 1e6:.1f} MB, client {client_bytes / 1e6:.1f} MB")
        assert grown.bytes < 100e6
        assert client_bytes < 24 * MIB


class _Growth:
    """By how much a server's memory exceeds what it had before, at most, while it is watched."""

    def __init__(self, server: Served) -> None:
        self.bytes = 0
        self._server = server
        self._before = server.memory_bytes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.bytes = max(self.bytes, self._server.memory_bytes - self._before)
            time.sleep(0.02)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(10)
