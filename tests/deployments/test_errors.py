"""Every error there is reaches the client in OpenAI's shape, with its status, and says nothing of the inside."""

from __future__ import annotations

import json
import logging

import pytest

from adapters_store import errors
from deployments.api.errors import _TABLE, error_body
from tests.deployments.gateway import CHAT, Gateway

STATUS = {
    errors.InvalidRequest: (400, "invalid_request_error"),
    errors.InvalidName: (400, "invalid_request_error"),
    errors.NotAuthenticated: (401, "invalid_api_key"),
    errors.PermissionDenied: (403, "permission_denied"),
    errors.NotFound: (404, "model_not_found"),
    errors.Conflict: (409, "conflict"),
    errors.TooSlow: (408, "request_timeout"),
    errors.TooLarge: (413, "request_too_large"),
    errors.Overloaded: (429, "overloaded"),
    errors.Unavailable: (503, "unavailable"),
    errors.StoreUnavailable: (503, "unavailable"),
    errors.InternalError: (500, "internal_error"),
    errors.LorikeetError: (500, "internal_error"),
}


def every_class() -> set[type]:
    found, new = set(), {errors.LorikeetError}
    while new:
        found |= new
        new = {sub for cls in new for sub in cls.__subclasses__() if sub.__module__ == errors.__name__}
    return found


def test_every_class_has_its_status_here() -> None:
    assert every_class() == {*STATUS, errors.InvalidAdapter, errors.NotReady}
    assert {cls for cls, _ in _TABLE} <= set(STATUS)


@pytest.mark.parametrize(("cls", "status", "code"), [(cls, *expected) for cls, expected in STATUS.items()])
async def test_class_decides_status_code_and_shape(api: Gateway, cls: type[errors.LorikeetError], status: int, code: str) -> None:
    api.dispatch.error = cls("what, which, what to do", param="model")
    response = await api.client.post("/v1/chat/completions", json=CHAT)
    error = response.json()["error"]
    assert response.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, "model")
    assert error["message"].startswith("what, which, what to do") and error["type"]
    assert ("retry-after" in response.headers) == (status in (429, 503))
    assert ("www-authenticate" in response.headers) == (status == 401)


async def test_a_version_that_waits_to_be_tried_is_worth_coming_back_for(api: Gateway) -> None:
    api.dispatch.error = errors.NotReady("acme", "support", "0" * 64)
    response = await api.client.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    assert "acme/support@" in response.json()["error"]["message"] and int(response.headers["retry-after"]) > 0


async def test_an_unfit_adapter_is_refused_with_every_reason(api: Gateway) -> None:
    api.dispatch.error = errors.InvalidAdapter(["Rank 64 is too much.", "DoRA is not served."])
    response = await api.client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "Rank 64 is too much. DoRA is not served."


async def test_a_bug_is_told_as_a_request_id_and_logged_whole(api: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    api.dispatch.error = RuntimeError("/secret/path lk-key")
    with caplog.at_level(logging.ERROR, logger="deployments"):
        response = await api.client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "find-me"})
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "internal_error" and "find-me" in error["message"]
    assert "secret" not in response.text and "Traceback" not in response.text and "RuntimeError" not in response.text
    [record] = [record for record in caplog.records if record.getMessage() == "request_failed"]
    assert record.request_id == "find-me" and record.exc_info is not None  # type: ignore[attr-defined]


async def test_an_internal_error_names_the_request(api: Gateway) -> None:
    body = json.loads(error_body(errors.InternalError("broke"), "id-1"))
    assert "id-1" in body["error"]["message"]
    assert "id-1" not in json.loads(error_body(errors.NotFound("none"), "id-1"))["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/api/v1/nothing", 404, "not_found"),
        ("POST", "/api/v2/chat/completions", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/adapters/a/b", 405, "method_not_allowed"),
        ("GET", "/v1/adapters?limit=0", 400, "invalid_request_error"),
        ("GET", "/v1/adapters?limit=many", 400, "invalid_request_error"),
        ("GET", "/v1/models?limit=1001", 400, "invalid_request_error"),
        ("GET", "/v1/adapters?owner=no%20one", 400, "invalid_request_error"),
        ("GET", "/v1/models/no/such/model", 404, "model_not_found"),
        ("GET", "/v1/adapters/acme/nothing", 404, "model_not_found"),
        ("PUT", "/v1/adapters/acme/nothing/aliases/stable", 400, "invalid_request_error"),
        ("DELETE", "/v1/adapters/acme/nothing", 404, "model_not_found"),
    ],
)
async def test_routes_refuse_in_the_same_shape(api: Gateway, method: str, path: str, status: int, code: str) -> None:
    response = await api.client.request(method, path)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == code
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(api: Gateway) -> None:
    body = b" " * (api.services.settings.gateway.max_body_bytes + 1)

    async def in_parts():  # type: ignore[no-untyped-def]
        for at in range(0, len(body), 1 << 16):
            yield body[at : at + (1 << 16)]

    for content in (body, in_parts()):
        response = await api.client.post("/v1/chat/completions", content=content)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
