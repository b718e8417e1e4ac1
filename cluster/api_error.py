"""What a call to the HTTP API fails with."""

from __future__ import annotations


class ApiError(Exception):
    """The server refused, or could not be reached (`status` 0). The message is the server's own."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry_after_seconds: float = 0.0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_seconds = retry_after_seconds

    @property
    def may_pass(self) -> bool:
        """Whether the same call may succeed a little later. A 500 without our words is HAProxy's: no gateway is up."""
        return self.status in (0, 408, 429, 502, 503, 504) or (self.status == 500 and self.code is None)
