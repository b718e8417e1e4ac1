"""Fixtures of the adapters_store tests: each store as a real thing, a folder and a moto server over HTTP."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters_store.local import LocalStore
from adapters_store.objects import ObjectStore, open_store
from tests.s3 import S3Endpoint, moto_server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[S3Endpoint]:
    """moto's server, with its address and credentials in the environment."""
    with moto_server() as endpoint, endpoint.in_environment():
        endpoint.create_bucket("lorikeet")
        yield endpoint


@pytest.fixture
def local_store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def s3_store(s3_endpoint: S3Endpoint) -> ObjectStore:
    return open_store(f"s3://lorikeet/test-{next(_numbers)}")


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    """Each store in turn: what a test says with it is the contract."""
    return request.getfixturevalue(f"{request.param}_store")
