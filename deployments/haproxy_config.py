"""What Lorikeet changes in the configuration that Serve writes for haproxy: Serve's template has no settings for it.

- Errors are in the API's shape also where haproxy gives them itself (no gateway lives) or Serve does, in plain text, on the way to a
  gateway; and each has an x-request-id. Not in our hands: what haproxy says, as HTML with 400 or 408, to what is no HTTP request.
- Headers by which a client could steer Serve are not passed on: one of them turns off noticing that the client has gone.
- A request's headers must come within a bound.
- A chat whose gateway died is made again at another, as long as nothing of the answer had come. `environment.py` sets `retry-on` to that;
  here it is held to what may be made twice, chats and reads: an upload or a move of an alias may have been done before the answer was
  lost. haproxy can only make again what it has whole, so it takes a chat's body in before it passes it on; a larger one than its buffer
  is not retried (docs/decisions/0012).
- The admin socket is the owner's, and statistics are for this machine.

Pure text to text, and only what `haproxy.py` needs to run before haproxy: it imports nothing.
"""

from __future__ import annotations

MARK = "    # lorikeet\n"
HEADERS_SECONDS = 30
BODY_SECONDS = 30  # as long as the gateway itself would wait for the rest (api/body.py)
RETRY_SECONDS = 1
RETRIES = 8  # a second each where there is no other gateway: until haproxy's health check, every 5 s, has seen the dead one
BUFFER_BYTES = 65_536

_BUSY = "no gateway can take this just now: try again in a moment"
# status: type, code, message. Types and codes are those of deployments/api/errors.py.
ERRORS: dict[int, tuple[str, str, str]] = {
    400: ("invalid_request_error", "invalid_request_error", "this is not a valid HTTP request"),
    404: ("invalid_request_error", "not_found", "there is no such path here: see /docs for the routes"),
    408: ("invalid_request_error", "request_timeout", f"the rest of the request body did not come within {BODY_SECONDS} s: send it again"),
    500: ("server_error", "internal_error", "something went wrong here: tell the operator the id in the header x-request-id"),
    502: ("service_unavailable_error", "unavailable", "the gateway stopped before it answered: try again"),
    503: ("service_unavailable_error", "unavailable", _BUSY),
    504: ("service_unavailable_error", "unavailable", "the gateway did not answer in time: try again"),
}
_FROM_HAPROXY = (408, 500, 502, 503, 504)
_RETRIED = (502, 503, 504)

_CHATS = ("/api/v1/chat/completions", "/v1/chat/completions")

# Serve reads these; `x-request-id` it decodes as UTF-8 and fails where it is none.
_STEERING = (
    "x-request-disconnect-disabled",
    "x-request-timeout-seconds",
    "serve_multiplexed_model_id",
    "serve-multiplexed-model-id",
    "x-session-id",
)


def amend(config: str) -> str:
    """Serve's configuration as Lorikeet wants it. Once is enough: what is amended stays as it is."""
    if MARK in config:
        return config
    lines: list[str] = []
    for line in config.splitlines(keepends=True):
        lines.append(_changed(line))
        if line == "defaults\n":
            lines += [MARK, *_defaults()]
        elif line == "frontend http_frontend\n":
            lines += [MARK, *_frontend()]
    return "".join(lines)


def _changed(line: str) -> str:
    words = line.split()
    match words[:2]:
        case ["errorfile", _]:
            return ""
        case ["stats", "socket"]:
            return line.replace(" mode 666 ", " mode 600 ")
        case ["bind", address] if address.startswith((":", "*:")):  # statistics: the frontend is bound to an address
            return line.replace(address, f"127.0.0.1:{address.rpartition(':')[2]}")
    if line.strip().startswith("http-request return status 404 content-type text/plain lf-string \"Path '%[path]' not found."):
        return f"    http-request return status 503 {_content(503)} {_id_header()}\n"
    return line


def _defaults() -> list[str]:
    """What haproxy answers by itself. There may be no request to take an id from."""
    errors = [f"    http-error status {status} {_content(status)} hdr x-request-id %[uuid()]\n" for status in _FROM_HAPROXY]
    return [f"    timeout http-request {HEADERS_SECONDS}s\n", *errors]


def _frontend() -> list[str]:
    rules = [
        "http-request del-header x-request-id unless { req.hdr(x-request-id) -m reg ^[!-~]{1,128}$ }",
        "http-request set-header x-request-id %[uuid()] unless { req.hdr(x-request-id) -m found }",
        "http-request set-var(txn.request_id) req.hdr(x-request-id)",
        *(f"http-request del-header {header}" for header in _STEERING),
        *(
            f"http-response return status {status} {_content(status)} {_id_header()} "
            f"if {{ status {status} }} {{ res.hdr(content-type) -m beg text/plain }}"
            for status in ERRORS
        ),
        f"acl lorikeet_chat path {' '.join(_CHATS)}",
        "http-request disable-l7-retry unless METH_GET or lorikeet_chat",
        f"http-request wait-for-body time {BODY_SECONDS}s if METH_POST lorikeet_chat",
    ]
    return [f"    {rule}\n" for rule in rules]


def _id_header() -> str:
    return "hdr x-request-id %[var(txn.request_id)]"


def _content(status: int) -> str:
    kind, code, message = ERRORS[status]
    body = f'{{"error": {{"message": "{message}", "type": "{kind}", "param": null, "code": "{code}"}}}}'
    retry = f" hdr retry-after {RETRY_SECONDS}" if status in _RETRIED else ""
    return f"content-type application/json string '{body}'{retry}"
