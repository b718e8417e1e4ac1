"""The documentation under test: no setting, route, command or environment variable without it, no link that leads nowhere."""

from __future__ import annotations

import json
import re
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cluster.cli import app as command
from configs.settings import ModelSettings, Settings
from deployments.api.app import build_routes
from deployments.api.schemas import ChatRequest
from deployments.api.services import Services

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "examples" / "README.md", ROOT / "requirements" / "README.md"])
USER_PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def settings(node: type[BaseModel] = Settings, path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting that holds a value, by its dotted path; the first model stands for all."""
    for name, field in node.model_fields.items():
        kind = field.annotation
        if node is Settings and name == "models":
            yield from settings(ModelSettings, "models.0.")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings(kind, f"{path}{name}.")
        else:
            yield path + name, field


def shown_default(field: FieldInfo) -> str:
    """A default as docs/configuration.md writes it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"`{json.dumps(list(value))}`"
    plain = {"{}": "{}", "": '""', "True": "true", "False": "false"}.get(str(value), str(value))
    return f"`{plain}`"


def documented_settings() -> dict[str, str]:
    """Path to default, of the rows of docs/configuration.md."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `([a-z0-9_.]+)` \| (.+?) \| .+ \|$", text, re.MULTILINE))


@pytest.mark.parametrize(("path", "field"), list(settings()), ids=lambda value: value if isinstance(value, str) else "")
def test_setting_is_documented_with_its_default(path: str, field: FieldInfo) -> None:
    assert documented_settings().get(path) == shown_default(field)


def test_no_setting_is_documented_that_is_gone() -> None:
    assert set(documented_settings()) == {path for path, _ in settings()}


def openapi() -> dict[str, Any]:
    return build_routes(cast(Services, SimpleNamespace(metrics=None))).openapi()


ROUTES = [f"{method.upper()} {path}" for path, methods in openapi()["paths"].items() for method in methods]


@pytest.mark.parametrize("route", ROUTES)
def test_route_is_documented(route: str) -> None:
    pages = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("api.md", "adapters.md"))
    assert f"{route}`" in pages or f"## {route}\n" in pages


@pytest.mark.parametrize("field", list(ChatRequest.model_fields))
def test_chat_field_is_documented(field: str) -> None:
    assert f"`{field}`" in (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def commands(node: Any, name: str = "") -> Iterator[str]:
    """Every subcommand, e.g. `adapters push`. A group is what has commands: typer's click is not the one that can be imported."""
    children = getattr(node, "commands", None)
    if children is None:
        yield name
        return
    for child, inner in children.items():
        yield from commands(inner, f"{name} {child}".strip())


COMMANDS = list(commands(typer.main.get_command(command)))


def test_commands_are_found() -> None:
    assert {"up", "adapters push"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_documented(name: str) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in USER_PAGES)
    assert f"lorikeet {name}" in pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if not re.match(r"[a-z]+://", link)]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: {target.name} has no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get on the common git hosts."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_version_is_the_newest_of_the_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_every_file_named_in_structure_exists() -> None:
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:configs|adapters_store|deployments|cluster|tests)/[\w/.]*)`", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = []
    for page in sorted((ROOT / "docs" / "decisions").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        title = re.match(r"# (\d+)\. \S", text)
        assert title is not None, f"{page.name} begins with no '# <number>. <title>'"
        assert page.name.startswith(f"{int(title[1]):04d}-")
        numbers.append(int(title[1]))
    assert numbers == list(range(1, len(numbers) + 1))


def test_demo_answers_of_the_readme_are_those_of_the_examples() -> None:
    """Both pages show what the same adapters answered; trained again, both change."""
    rows = re.findall(r"^\| `(\S+)` \| (?!answer)(.+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 4
    examples = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for model, answer in rows:
        assert f"`{model}` | {answer} |" in examples


def test_picture_is_well_formed_and_loads_nothing() -> None:
    text = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert ET.fromstring(text).tag.endswith("svg")
    assert "href" not in text
    assert "<script" not in text
