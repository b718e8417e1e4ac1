"""Reads settings: `base.yaml` <- overlay file <- `key=value` words -> the frozen tree of `settings.py`.

The first thing every `lorikeet` command does. OmegaConf merges, pydantic judges; whatever is wrong becomes one ConfigError whose
message names the dotted path, the value and what is allowed there.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.settings import Settings, SharedSettings

BASE = Path(__file__).parent / "base.yaml"


class ConfigError(Exception):
    """The settings cannot be used. The message is for the terminal: one line per fault, each with its path and remedy."""


def load(config: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """The settings from `base.yaml`, an overlay file and `key=value` words, later ones winning.

    A list in the overlay replaces the whole list of the base; a word reaches into a list by position (`models.0.lora.max_rank=16`).

    Raises:
        ConfigError: a file that is not YAML, an unknown key, or a value that is not allowed.
    """
    merged = _read(BASE)
    if config is not None:
        merged = _merge(merged, _read(config), config)
    for word in overrides:
        _set(merged, word)
    try:
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'settings'}: {_first_line(error)}") from None
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(fault) for fault in error.errors() if not _follows(fault))) from None


def home(settings: SharedSettings) -> Path:
    """The folder of the embedded store, the prepared model, the first key and the run's state."""
    return Path(settings.home or os.environ.get("LORIKEET_HOME") or "~/.lorikeet").expanduser().absolute()


def store_url(settings: SharedSettings) -> str:
    """What `adapters_store.objects.open_store` takes: the configured URL, with `embedded` resolved to a folder in home."""
    return (home(settings) / "store").as_uri() if settings.store.url == "embedded" else settings.store.url


def _read(file: Path) -> DictConfig:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {file}: give --config an existing YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {file} cannot be read: {error}") from None
    try:
        parsed = OmegaConf.create(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {file} is not valid YAML{_where(error)}") from None
    if not isinstance(parsed, DictConfig):
        raise ConfigError(f"config file {file} must hold `key: value` lines at its top, not a list")
    return parsed


def _merge(base: DictConfig, overlay: DictConfig, file: Path) -> DictConfig:
    try:
        merged = OmegaConf.merge(base, overlay)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'settings'} in {file}: {_first_line(error)}") from None
    assert isinstance(merged, DictConfig)
    return merged


def _set(tree: DictConfig, word: str) -> None:
    """Apply one `key=value` word; the value is read as YAML, so numbers, lists and true/false mean what they look like."""
    path, equals, text = word.partition("=")
    if not equals or not path:
        raise ConfigError(f"{word!r} is not a setting: write key=value, e.g. gateway.port=8001")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {text!r} is not a YAML value{_where(error)}") from None
    _check_positions(tree, path)
    try:
        OmegaConf.update(tree, path, value, force_add=True)
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be set to {text!r}: {_first_line(error)}") from None


def _check_positions(tree: DictConfig, path: str) -> None:
    """Refuse a list position that is not there; OmegaConf's own words for it do not help."""
    node: Any = tree
    walked: list[str] = []
    for part in path.split("."):
        if OmegaConf.is_list(node):
            where = ".".join(walked)
            if not part.isdigit() or int(part) >= len(node):
                there = ", ".join(f"{where}.{position}" for position in range(len(node))) or "nothing"
                raise ConfigError(f"{path}: {where}.{part} is not in the list {where}, which holds {there}")
            node = node[int(part)]
        elif OmegaConf.is_dict(node):
            node = node.get(part)
        else:
            return
        walked.append(part)


def _follows(fault: ErrorDetails) -> bool:
    """Whether a fault only repeats another: pydantic calls a list too short when its items are wrong."""
    return fault["type"] == "too_short" and bool(fault["input"])


def _explain(fault: ErrorDetails) -> str:
    """One fault as a line: dotted path, value, what is allowed."""
    loc = fault["loc"]
    path = ".".join(str(part) for part in loc)
    if fault["type"] == "extra_forbidden":
        return _unknown(path, str(loc[-1]), _allowed(loc[:-1]))
    if fault["type"] == "missing":
        return f"{path}: is required and not set"
    told = fault["msg"].removeprefix("Value error, ")
    value = fault["input"]
    shown = "" if isinstance(value, Mapping | list | tuple | BaseModel) or repr(value) in told else f"{value!r} is not allowed: "
    return f"{path or 'settings'}: {shown}{told[:1].lower() + told[1:]}"


def _unknown(path: str, key: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, allowed, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{path}: there is no such setting; {guess}Allowed here: {', '.join(sorted(allowed))}"


def _allowed(loc: tuple[int | str, ...]) -> Sequence[str]:
    """The keys that the node of the tree at `loc` has."""
    node: type[BaseModel] = Settings
    for part in loc:
        if isinstance(part, int):
            continue
        node = _node_of(node.model_fields[part].annotation)
    return tuple(node.model_fields)


def _node_of(annotation: Any) -> type[BaseModel]:
    """The settings node behind a field's type: itself, or the item of a tuple of nodes."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return _node_of(annotation.__args__[0])


def _where(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f": {_first_line(error)}"
    mark = error.problem_mark
    return f" in line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
