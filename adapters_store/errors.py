"""The error tree. Everything Lorikeet refuses or fails at is one of these; `deployments/api/errors.py` maps class to status.

    LorikeetError
    ├── InvalidRequest           the caller's input is wrong; `param` names the field
    │   ├── InvalidName          not a name by the grammar of `names.py`
    │   ├── InvalidAdapter       an upload that no base here can serve; `reasons` holds every one found
    │   └── TooSlow              the rest of a request did not come in time
    ├── NotAuthenticated         no key, or a key nobody issued
    ├── PermissionDenied         a good key that may not do this
    ├── NotFound                 a model, adapter, version or alias that does not exist (or may not be seen)
    ├── Conflict                 somebody else changed it first (a conditional write lost)
    ├── TooLarge                 more bytes than the limit
    ├── Overloaded               a queue is full; try again after `retry_after_seconds`
    ├── Unavailable              something we depend on is away; likewise
    │   ├── StoreUnavailable     the object store did not answer
    │   └── NotReady             a version that has not been tried on a replica yet; the gateway tries it
    └── InternalError            our fault

A message says what, which value, and what to do. It reaches clients as it is, so it never holds a path, a key or a trace.
"""

from __future__ import annotations


class LorikeetError(Exception):
    """The root. `param` names the request field at fault where there is one.

    `of_private` says that the message tells of a private adapter, or of what is its owner's to know: others are told that the name is
    unknown.
    """

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.of_private = False
        self.message = message
        self.param = param


class InvalidRequest(LorikeetError):
    pass


class InvalidName(InvalidRequest):
    pass


class InvalidAdapter(InvalidRequest):
    """`reasons` holds every fault found, each a sentence with its remedy; the message joins them."""

    def __init__(self, reasons: tuple[str, ...] | list[str], *, param: str | None = None) -> None:
        self.reasons = tuple(reasons)
        super().__init__(" ".join(self.reasons), param=param)


class TooSlow(InvalidRequest):
    pass


class NotAuthenticated(LorikeetError):
    pass


class PermissionDenied(LorikeetError):
    pass


class NotFound(LorikeetError):
    pass


class Conflict(LorikeetError):
    pass


class TooLarge(LorikeetError):
    pass


class Overloaded(LorikeetError):
    def __init__(self, message: str, *, retry_after_seconds: float = 1.0, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(LorikeetError):
    def __init__(self, message: str, *, retry_after_seconds: float = 2.0, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_seconds = retry_after_seconds


class StoreUnavailable(Unavailable):
    pass


class NotReady(Unavailable):
    """`owner`, `name` and `version` say which is to be tried (`registry.admissions`)."""

    def __init__(self, owner: str, name: str, version: str) -> None:
        self.owner, self.name, self.version = owner, name, version
        super().__init__(
            f"{owner}/{name}@{version} waits to be tried on a replica of its base model: try again when that is up", param="model"
        )


class InternalError(LorikeetError):
    pass
