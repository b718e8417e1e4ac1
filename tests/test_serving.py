"""What hides the development lock's packages from what serves hides just those."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.serving import hidden_packages, serving_environment


def found(package: str) -> bool:
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([sys.executable, "-c", program], env={**os.environ, **serving_environment()}, check=False).returncode == 0


def test_packages_that_tests_alone_need_are_not_found() -> None:
    assert {"peft", "pytest", "moto", "litellm"} <= hidden_packages()
    assert not found("peft") and not found("moto")


def test_packages_that_serving_needs_are_found() -> None:
    assert not {"vllm", "ray", "transformers", "accelerate", "boto3", "cluster"} & hidden_packages()
    assert found("accelerate") and found("cluster") and found("typer")
