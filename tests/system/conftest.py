"""One running platform for all system tests of a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.system.stack import Stack, kept_stack, running_stack


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The platform, with the demo adapters published; tests publish their own under owners of their own.

    Its S3 is in this process's environment meanwhile.
    """
    with pytest.MonkeyPatch.context() as patch:
        kept = os.environ.get("LORIKEET_TEST_STACK")
        if kept:
            stack = kept_stack(Path(kept))
            _set(patch, stack)
            yield stack
            return
        embedded_model: Path = request.getfixturevalue("embedded_model")
        with running_stack(tmp_path_factory.mktemp("stack"), embedded_model) as stack:
            _set(patch, stack)
            yield stack


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """A reference shares the cores with the stack: threads that wait for one another would make it slower by far."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _set(patch: pytest.MonkeyPatch, stack: Stack) -> None:
    for name, value in stack.environment.items():
        patch.setenv(name, value)
