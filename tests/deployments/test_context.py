"""Request ids: one for every request, said once, taken from the client only where it is plain."""

from __future__ import annotations

import logging

import pytest

from tests.deployments.gateway import CHAT, Gateway


async def test_every_answer_has_a_new_id(api: Gateway) -> None:
    ids = [(await api.client.get(path)).headers.get_list("x-request-id") for path in ("/healthz", "/healthz", "/nowhere", "/v1/models")]
    assert all(len(said) == 1 for said in ids)
    assert len({said[0] for said in ids}) == 4


async def test_a_plain_id_of_the_clients_is_used_and_left_to_serve_to_say(api: Gateway) -> None:
    response = await api.client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "Mine-123"})
    assert api.dispatch.asked[0][0] == "Mine-123"
    assert response.headers.get_list("x-request-id") == [], "Serve says it already: it would be there twice"


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "é", "tab\there"])
async def test_an_id_that_is_not_plain_is_replaced(api: Gateway, given: str) -> None:
    response = await api.client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": given.encode()})
    [said] = response.headers.get_list("x-request-id")
    assert api.dispatch.asked[0][0] == said != given


async def test_every_request_leaves_one_log_line_without_its_content(api: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="deployments"):
        messages = [{"role": "user", "content": "a private question"}]
        await api.client.post("/v1/chat/completions", json={**CHAT, "messages": messages}, headers={"x-request-id": "r1"})
    [record] = [record for record in caplog.records if record.getMessage() == "request"]
    fields = vars(record)
    assert (fields["request_id"], fields["method"], fields["path"], fields["status"]) == ("r1", "POST", "/v1/chat/completions", 200)
    assert fields["ms"] >= 0
    assert "private" not in str(fields) and "lk-unit-test" not in str(fields)
