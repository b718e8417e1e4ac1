"""Structured logs: one JSON object a line, with the fields that the event was logged with.

`logger.info("event_name", extra={...})` everywhere; the request id is a field. Prompts, keys and weights are never fields.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OURS = ("adapters_store", "cluster", "deployments")


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        # Ray's loggers put their own context on every record; what starts with an underscore or is not plain data is not ours.
        fields.update({k: v for k, v in vars(record).items() if k not in _STANDARD and isinstance(v, str | int | float | bool)})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def set_up_logs(level: str) -> None:
    """Send Lorikeet's own loggers to standard error as JSON lines; called once in each process that Serve starts."""
    # The process's own standard error: Serve puts a logger of its own in sys.stderr's place, which holds lines back until it has many.
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(JsonFormatter())
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level.upper())
        logger.propagate = False


@contextmanager
def kept_serve_log() -> Iterator[None]:
    """Keep Serve's log of this process through a block in which logging is configured anew, as vLLM does when it is imported.

    That closes every handler, and Serve's loses its file. Serve asks it where the file is when its controller has been restarted, and a
    replica that cannot say is stopped, its engine with it: without this, a dead controller costs every replica.
    """
    handlers = [handler for handler in logging.getLogger("ray.serve").handlers if isinstance(handler, MemoryHandler)]
    files = [handler.target for handler in handlers]
    try:
        yield
    finally:
        for handler, file in zip(handlers, files, strict=True):
            handler.setTarget(file)
