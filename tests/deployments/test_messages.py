"""What crosses between gateway and replica arrives as it was sent; what cannot be read becomes an InternalError."""

from __future__ import annotations

import json
import pickle

import pytest

from adapters_store import errors
from adapters_store.adapter import Adapter, AdapterFile
from deployments.messages import ChatCall, error_from_payload, error_payload, head_payload

CARRIED = [
    errors.InvalidRequest("m", param="p"),
    errors.NotFound("m", param="model"),
    errors.TooLarge("m"),
    errors.Overloaded("m", retry_after_seconds=3.5, param="p"),
    errors.Unavailable("m", retry_after_seconds=0.5),
    errors.StoreUnavailable("m", retry_after_seconds=9.0),
    errors.InternalError("m"),
]


@pytest.mark.parametrize("error", CARRIED, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_it_was(error: errors.LorikeetError) -> None:
    arrived = error_from_payload(error_payload(error))
    assert type(arrived) is type(error)
    assert vars(arrived) == vars(error)


@pytest.mark.parametrize(
    ("error", "cls"),
    [
        (errors.InvalidAdapter(["one", "two"]), errors.InvalidRequest),
        (errors.InvalidName("n"), errors.InvalidRequest),
        (errors.Conflict("c"), errors.InternalError),
        (errors.PermissionDenied("d"), errors.InternalError),
    ],
)
def test_a_class_that_does_not_travel_becomes_its_nearest(error: errors.LorikeetError, cls: type) -> None:
    arrived = error_from_payload(error_payload(error))
    assert type(arrived) is cls and arrived.message == error.message


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"5", b"{}", b'{"class": 1}', b"\xff", b'{"class": "NotFound", "message": "m"}'])
def test_an_error_that_cannot_be_read_is_an_internal_one(payload: bytes) -> None:
    assert type(error_from_payload(payload)) is errors.InternalError


@pytest.mark.parametrize("name", ["NotFound", "InvalidRequest"])
def test_an_error_with_a_retry_that_its_class_does_not_take_is_read_all_the_same(name: str) -> None:
    payload = json.dumps({"class": name, "message": "m", "param": None, "retry_after": 1.0}).encode()
    assert isinstance(error_from_payload(payload), errors.LorikeetError)


def test_head_says_where_and_how_long() -> None:
    assert json.loads(head_payload("store", 1.23456)) == {"cold": "store", "wait_ms": 1234.6}


def test_a_call_survives_the_way_through_serve() -> None:
    adapter = Adapter("o", "n", "0" * 64, "tiny", 8, (AdapterFile("f", 1, "1" * 64),), 0.0, "k")
    call = ChatCall("r", b"i" * 16, "tcp://127.0.0.1:1", "o/n", adapter, b"{}", True)
    assert pickle.loads(pickle.dumps(call)) == call
