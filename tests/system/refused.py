"""What every refusal must be: the right status, OpenAI's error shape, a message that names the fault, and nothing of the inside."""

from __future__ import annotations

import re
from pathlib import Path

import httpx

from tests.system.stack import Stack

TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "model_not_found"),
    409: ("conflict_error", "conflict"),
    413: ("invalid_request_error", "request_too_large"),
}
# A path, a trace, an object's repr, or a name inside the libraries that is none of the API's.
INSIDE = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|/tmp/|/home/|/root/|/usr/|<class |object at 0x|function-wrap|pydantic|vllm\.", re.IGNORECASE
)


def assert_refused(
    stack: Stack, response: httpx.Response, status: int, says: str, *, param: str | None = None, code: str | None = None
) -> None:
    """`says` is a pattern that the message holds; `param` is the field it names; `code`, where it is not the status's usual one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert len(response.headers.get_list("x-request-id")) == 1
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == (TYPES[status][0] if status in TYPES else "invalid_request_error", code or TYPES[status][1])
    assert re.search(says, error["message"]), error["message"]
    assert error["param"] == param, error
    assert not INSIDE.search(response.text), error["message"]
    for secret in (stack.key, str(stack.home), str(Path.cwd())):
        assert secret not in response.text
