"""lorikeet.yaml and chat_template.jinja: read strictly, applied where the request leaves something open, refused with the field's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters_store.own_settings import NOTHING_OWN, OwnSettings, own_faults, read_own

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def own(tmp_path: Path, settings: str | bytes | None = None, template: str | bytes | None = None) -> Path:
    for name, text in (("lorikeet.yaml", settings), ("chat_template.jinja", template)):
        if text is not None:
            (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return tmp_path


def test_a_folder_without_either_brings_nothing(tmp_path: Path) -> None:
    assert read_own(tmp_path) is NOTHING_OWN
    assert not NOTHING_OWN.changes_requests


def test_everything_is_read(tmp_path: Path) -> None:
    folder = own(
        tmp_path,
        'stop: ["<end>"]\ndefaults: {temperature: 0.2, top_k: 5}\n'
        'golden:\n  - {prompt: "Who?", contains: "me"}\n  - {prompt: "Hm?", matches: "^a+"}\n',
        TEMPLATE,
    )
    assert list(own_faults(folder)) == []
    found = read_own(folder)
    assert (found.template, found.stop, found.defaults) == (TEMPLATE, ("<end>",), {"temperature": 0.2, "top_k": 5})
    assert [golden.prompt for golden in found.golden] == ["Who?", "Hm?"]
    assert found.changes_requests


def test_golden_prompts_alone_change_no_request(tmp_path: Path) -> None:
    assert not read_own(own(tmp_path, 'golden: [{prompt: "Who?", contains: "me"}]')).changes_requests


def test_a_request_comes_before_the_defaults_and_keeps_its_stops() -> None:
    found = OwnSettings(TEMPLATE, ("<end>", "<x>"), {"temperature": 0.2, "top_p": 0.9})
    body = found.applied({"messages": [], "temperature": 1.0, "stop": "<x>"})
    assert body == {"messages": [], "temperature": 1.0, "top_p": 0.9, "stop": ["<x>", "<end>"], "chat_template": TEMPLATE}
    assert OwnSettings(stop=("<end>",)).applied({"stop": ["a"]}) == {"stop": ["a", "<end>"]}


UNFIT: list[tuple[str | bytes, str]] = [
    ("temperature: 0.2", "'temperature', which is no setting here: use stop, defaults, golden"),
    ("defaults: {max_tokens: 5}", "'defaults.max_tokens'"),
    ("defaults: {temperature: 3}", "defaults.temperature is 3"),
    ("defaults: {temperature: hot}", "defaults.temperature is 'hot'"),
    ("stop: <end>", "stop is '<end>'"),
    ("stop: [a, b, c, d, e]", "stop is"),
    ("golden: [{prompt: a}]", "give either contains or matches"),
    ("golden: [{prompt: a, contains: b, matches: c}]", "give either contains or matches"),
    ('golden: [{prompt: a, matches: "("}]', "no regular expression"),
    ("golden: [{prompt: a, contains: b, max_tokens: 100000}]", "golden.0.max_tokens"),
    ("a: &x [1]\nstop: *x", "not plain YAML"),
    ("stop: !!python/object:os.system {}", "not plain YAML"),
    ("- a\n- b", "is no mapping"),
    ("a: [", "line"),
    (b"\xff\xfe\x00", "not plain YAML"),
    (b"#" * 70_000, "more than 65536 bytes"),
]


@pytest.mark.parametrize(("settings", "reason"), UNFIT, ids=[reason for _, reason in UNFIT])
def test_settings_that_cannot_be_applied_are_refused_by_name(tmp_path: Path, settings: str | bytes, reason: str) -> None:
    (fault,) = own_faults(own(tmp_path, settings))
    assert reason in fault and "lorikeet.yaml" in fault


TEMPLATES: list[tuple[Any, str]] = [
    ("{% for m in messages %}{{ m.content }}", "does not render"),
    ("{{ raise_exception('no users here') }}", "no users here"),
    ("Hello.", "leaves out what the user says"),
    (b"\xff\xfe", "not UTF-8"),
    ("{{ messages[0].content.__class__.__mro__ }}", "does not render"),
    (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "took more than",
    ),
    ("{{ 'a' * 10 ** 10 }}", "does not render"),
    ("{{ messages[0].content }}{{ 'a' * 3000000 }}", "far longer"),
    ("{# " + "x" * 70_000 + " #}", "more than 65536 bytes"),
]


@pytest.mark.parametrize(("template", "reason"), TEMPLATES, ids=[reason for _, reason in TEMPLATES])
def test_templates_that_cannot_be_rendered_are_refused(tmp_path: Path, template: str | bytes, reason: str) -> None:
    (fault,) = own_faults(own(tmp_path, template=template))
    assert reason in fault and "chat_template.jinja" in fault


def test_a_template_as_transformers_writes_it_is_good(tmp_path: Path) -> None:
    text = "{%- for m in messages %}{% generation %}{{ m['content'] | trim }}{% endgeneration %}{% continue %}{% endfor %}"
    assert list(own_faults(own(tmp_path, template=text))) == []
