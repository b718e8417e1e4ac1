"""Logs are one JSON object a line, with the event's own fields."""

from __future__ import annotations

import json
import logging
import sys
from logging.config import dictConfig
from logging.handlers import MemoryHandler
from pathlib import Path

import pytest

from deployments.logs import JsonFormatter, kept_serve_log, set_up_logs


def line(message: str = "event_name", *, error: BaseException | None = None, **fields: object) -> dict[str, object]:
    record = logging.makeLogRecord({"name": "deployments.x", "levelno": 20, "levelname": "INFO", "msg": message, **fields})
    if error is not None:
        record.exc_info = (type(error), error, error.__traceback__)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    parsed: dict[str, object] = json.loads(text)
    return parsed


def test_an_event_carries_its_fields() -> None:
    fields = line(request_id="r1", ms=1.5, status=200, cold=None, path="/ü")
    assert fields["event"] == "event_name" and fields["logger"] == "deployments.x" and fields["level"] == "info"
    assert (fields["request_id"], fields["ms"], fields["status"], fields["path"]) == ("r1", 1.5, 200, "/ü")
    assert str(fields["time"]).endswith("Z")


def test_what_is_not_plain_data_is_left_out() -> None:
    assert "thing" not in line(thing=object())


def test_an_exception_stays_on_its_line() -> None:
    try:
        raise ValueError("why\nin two lines")
    except ValueError as error:
        assert "ValueError: why" in str(line(error=error)["exception"])


def test_ours_are_written_and_others_left_alone(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("adapters_store", "cluster", "deployments")
    before = {
        name: (logging.getLogger(name).handlers[:], logging.getLogger(name).propagate, logging.getLogger(name).level) for name in names
    }
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    try:
        set_up_logs("info")
        set_up_logs("info")  # twice in one process: still one line
        logging.getLogger("deployments.stream").info("once", extra={"n": 1})
        logging.getLogger("deployments.stream").debug("not at this level")
        written = capfd.readouterr().err.splitlines()
    finally:
        for name, (handlers, propagate, level) in before.items():
            logger = logging.getLogger(name)
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
    assert [json.loads(row)["event"] for row in written] == ["once"]


def test_serves_log_has_its_file_after_somebody_has_configured_logging_anew(tmp_path: Path) -> None:
    file = logging.FileHandler(tmp_path / "replica.log")
    buffer = MemoryHandler(capacity=1, target=file)
    serve = logging.getLogger("ray.serve")
    serve.addHandler(buffer)
    try:
        with kept_serve_log():
            dictConfig({"version": 1, "disable_existing_loggers": False})  # as vLLM does when it is imported
            assert buffer.target is None, "otherwise there is nothing to keep any more"
        assert buffer.target is file
        serve.error("after it")
    finally:
        serve.removeHandler(buffer)
        buffer.close()
        file.close()
    assert "after it" in (tmp_path / "replica.log").read_text()
