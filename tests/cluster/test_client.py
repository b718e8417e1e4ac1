"""The client against a real HTTP server. Pushes are in test_push.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.client import ApiError, Client
from cluster.ports import pick_free
from tests.cluster.api_server import KEY, ApiServer, api_server


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as running:
        yield running


@pytest.fixture
def client(server: ApiServer) -> Iterator[Client]:
    with Client(server.url, KEY) as connected:
        yield connected


def test_a_wrong_key_is_401(server: ApiServer) -> None:
    with Client(server.url, "wrong") as client, pytest.raises(ApiError) as caught:
        list(client.list_adapters())
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")


def test_listing_follows_every_page(client: Client, server: ApiServer) -> None:
    server.adapters += [*(f"acme/a{number}" for number in range(7)), "beta/b"]
    assert [row.id for row in client.list_adapters(page=3)] == sorted(server.adapters)
    assert [row.id for row in client.list_adapters(owner="beta")] == ["beta/b"]


def test_models_follow_every_page(client: Client) -> None:
    assert list(client.models()) == ["base", "demo/a", "demo/b"]


def test_show_of_an_unknown_adapter_is_404(client: Client) -> None:
    with pytest.raises(ApiError, match="acme/none") as caught:
        client.show("acme", "none")
    assert caught.value.status == 404


def test_warm_tells_where_a_version_is_loaded_now(client: Client, server: ApiServer) -> None:
    server.adapters.append("acme/support")
    assert client.warm("acme", "support", "a" * 64)["found"] == ["store"]
    everywhere = client.warm("acme", "support", "a" * 64, replicas=9)
    assert (everywhere["replicas"], everywhere["running"]) == (2, 2)
    with pytest.raises(ApiError, match="no replica") as caught:
        client.warm("acme", "none", "a" * 64)
    assert (caught.value.status, caught.value.may_pass) == (503, True)


def test_chat_streams_the_answer_piece_by_piece(client: Client) -> None:
    assert list(client.chat("base", [{"role": "user", "content": "hé"}])) == ["You said: ", "hé"]


def test_chat_with_an_unknown_model_is_refused(client: Client) -> None:
    with pytest.raises(ApiError, match="no model other"):
        list(client.chat("other", [{"role": "user", "content": "hi"}]))


def test_a_stream_that_breaks_off_is_an_error(client: Client, server: ApiServer) -> None:
    server.breaks_off = True
    pieces = client.chat("base", [{"role": "user", "content": "hi"}])
    assert next(pieces) == "You said: "
    with pytest.raises(ApiError, match="broke off"):
        next(pieces)


def test_a_server_that_is_away_is_named() -> None:
    url = f"http://127.0.0.1:{pick_free(1)[0]}"
    with Client(url, KEY) as client, pytest.raises(ApiError, match=url) as caught:
        client.ready()
    assert caught.value.status == 0


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/api/v1", "/api/v1/"])
def test_the_base_url_may_be_given_in_any_form(server: ApiServer, suffix: str) -> None:
    with Client(server.url + suffix, KEY) as client:
        assert client.ready() == (True, {"status": "ready", "models": {"base": "ready"}})
