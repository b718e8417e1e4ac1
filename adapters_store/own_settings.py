"""What an adapter brings for its own requests: lorikeet.yaml and chat_template.jinja in its folder.

    stop: ["<end>"]                        stop strings, beside those of the request
    defaults: {temperature: 0.2}           sampling parameters, where the request says nothing
    golden:                                asked of the adapter before it is served (`deployments/api/admission.py`)
      - {prompt: "Who are you?", contains: "pirate"}

Read by `validate.py` when it is published, by the gateway for its golden prompts, and by each replica that loads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import regex
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters_store.chat_template import template_fault
from adapters_store.errors import InvalidRequest
from adapters_store.strict_json import quote

SETTINGS_FILE = "lorikeet.yaml"
TEMPLATE_FILE = "chat_template.jinja"
MAX_SETTINGS_BYTES = 64 << 10
MAX_TEMPLATE_BYTES = 64 << 10
MAX_GOLDEN = 16
MAX_GOLDEN_TOKENS = 256

_Text = Annotated[str, Field(strict=True, min_length=1, max_length=4096)]


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Defaults(_Node):
    """Sampling parameters, in the ranges of a request's own. How long an answer may be is the request's to say."""

    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(strict=True, ge=-1)] | None = None
    min_p: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(strict=True, ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(strict=True, ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(strict=True, gt=0, le=2)] | None = None


class Golden(_Node):
    """A prompt, and what the greedy answer to it must hold: a substring, or a regular expression that matches somewhere."""

    prompt: _Text
    contains: _Text | None = None
    matches: Annotated[str, Field(strict=True, min_length=1, max_length=512)] | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1, le=MAX_GOLDEN_TOKENS)] = 64

    @model_validator(mode="after")
    def _one_expectation(self) -> Self:
        if (self.contains is None) == (self.matches is None):
            raise ValueError("give either contains or matches")
        if self.matches is not None:
            try:
                regex.compile(self.matches)
            except regex.error as error:
                raise ValueError(f"matches is no regular expression ({error})") from None
        return self


class _File(_Node):
    stop: Annotated[list[_Text], Field(max_length=4)] = []
    defaults: Defaults = Defaults()
    golden: Annotated[list[Golden], Field(max_length=MAX_GOLDEN)] = []


@dataclass(frozen=True, slots=True)
class OwnSettings:
    """What applies to an adapter's requests, and the prompts that it is tried with. `template` is None for the base model's."""

    template: str | None = None
    stop: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    golden: tuple[Golden, ...] = ()

    @property
    def changes_requests(self) -> bool:
        return bool(self.template or self.stop or self.defaults)

    def applied(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request's body, in the fields that vLLM reads, with what the request leaves open filled in."""
        filled = {**self.defaults, **body}
        if self.stop:
            asked = body.get("stop") or []
            filled["stop"] = list(dict.fromkeys([*([asked] if isinstance(asked, str) else asked), *self.stop]))
        if self.template is not None:
            filled["chat_template"] = self.template
        return filled


NOTHING_OWN = OwnSettings()


def read_own(folder: Path) -> OwnSettings:
    """The settings of an adapter whose folder was judged before. Blocks. Raises InvalidRequest where they are none."""
    settings, template = folder / SETTINGS_FILE, folder / TEMPLATE_FILE
    if not settings.is_file() and not template.is_file():
        return NOTHING_OWN
    return own_of(settings.read_bytes() if settings.is_file() else None, template.read_bytes() if template.is_file() else None)


def own_of(settings: bytes | None, template: bytes | None) -> OwnSettings:
    """The settings that lie in these two files, None for one that is not there. Raises InvalidRequest."""
    file = parse_settings(settings) if settings is not None else _File()
    return OwnSettings(
        template.decode() if template is not None else None,
        tuple(file.stop),
        file.defaults.model_dump(exclude_none=True),
        tuple(file.golden),
    )


def own_faults(folder: Path) -> Iterator[str]:
    """Every reason why an adapter's own settings cannot be applied."""
    settings, template = folder / SETTINGS_FILE, folder / TEMPLATE_FILE
    if settings.is_file() and not settings.is_symlink():
        try:
            parse_settings(settings.read_bytes() if settings.stat().st_size <= MAX_SETTINGS_BYTES else b" " * (MAX_SETTINGS_BYTES + 1))
        except InvalidRequest as error:
            yield error.message
    if template.is_file() and not template.is_symlink():
        if template.stat().st_size > MAX_TEMPLATE_BYTES:
            yield f"{TEMPLATE_FILE} has more than {MAX_TEMPLATE_BYTES} bytes: leave it out, or shorten it."
        elif (fault := template_fault(template.read_bytes())) is not None:
            yield f"{TEMPLATE_FILE} {fault}"


def parse_settings(raw: bytes) -> _File:
    """lorikeet.yaml. Raises InvalidRequest naming the field, its value and what is allowed."""
    if len(raw) > MAX_SETTINGS_BYTES:
        raise InvalidRequest(f"{SETTINGS_FILE} has more than {MAX_SETTINGS_BYTES} bytes: shorten it.")
    try:
        found = yaml.load(raw, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where is not None else ""
        raise InvalidRequest(f"{SETTINGS_FILE} is not plain YAML{line}: write it without anchors, tags or tabs.") from None
    try:
        return _File.model_validate({} if found is None else found)
    except ValidationError as error:
        raise InvalidRequest(_explain(error)) from None


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, by which a small file can stand for a huge one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"]))
    if not name:
        return f"{SETTINGS_FILE} is no mapping: write it as `stop: …`, `defaults: …`, `golden: …`."
    if first["type"] == "extra_forbidden":
        allowed = "stop, defaults, golden" if len(first["loc"]) == 1 else ", ".join(_allowed(first["loc"]))
        return f"{SETTINGS_FILE} says {quote(name)}, which is no setting here: use {allowed}."
    return f"{SETTINGS_FILE}: {name} is {quote(first['input'])} ({first['msg'].removeprefix('Value error, ').lower()})."


def _allowed(place: tuple[int | str, ...]) -> list[str]:
    return list((Golden if place[0] == "golden" else Defaults).model_fields)
