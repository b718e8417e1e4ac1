"""Settings: what files and words make, and what is refused with its path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from configs import load as loading
from configs.load import ConfigError, home, load, store_url
from configs.settings import Settings

CONFIGS = Path(loading.__file__).parent


def refusal(*words: str, config: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(config, words)
    return str(caught.value)


def test_base_serves_the_embedded_model_from_a_folder() -> None:
    settings = load()
    model = settings.models[0]
    assert (model.id, model.source, settings.store.url) == ("smollm2-135m", "embedded", "embedded")
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in model.names
    assert settings.demo_adapters


@pytest.mark.parametrize("name", ["local.yaml", "production.yaml"])
def test_shipped_overlays_load(name: str) -> None:
    assert load(CONFIGS / name).models


def test_words_win_over_the_overlay_and_the_overlay_over_the_base(tmp_path: Path) -> None:
    overlay = tmp_path / "o.yaml"
    overlay.write_text("gateway: {port: 8100, host: 0.0.0.0}\n")
    settings = load(overlay, ["gateway.port=8200"])
    assert (settings.gateway.port, settings.gateway.host, settings.models[0].id) == (8200, "0.0.0.0", "smollm2-135m")


def test_a_word_reaches_into_a_list_and_leaves_the_rest_of_it() -> None:
    model = load(None, ["models.0.lora.max_rank=32"]).models[0]
    assert (model.lora.max_rank, model.lora.max_loras, model.id) == (32, 4, "smollm2-135m")


def test_engine_options_pass_through_with_their_types() -> None:
    engine = load(None, ["models.0.engine.max_model_len=512", "models.0.engine.stop=[a, b]"]).models[0].engine
    assert engine["max_model_len"] == 512
    assert engine["stop"] == ["a", "b"]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().gateway.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("gateway.prt=1", ["gateway.prt", "did you mean port?", "max_body_bytes"]),
        ("gatway.port=1", ["gatway", "did you mean gateway?"]),
        ("models.0.lora.max_rnk=8", ["models.0.lora.max_rnk", "did you mean max_rank?"]),
        ("models.0.resources.gpu=1", ["models.0.resources.gpu", "did you mean gpus?"]),
        ("gateway.port=99999", ["gateway.port", "99999", "65535"]),
        ("gateway.port=http", ["gateway.port", "'http'", "integer"]),
        ("models.0.lora.max_rank=17", ["models.0.lora.max_rank", "17", "16, 32, 64"]),
        ("log.level=loud", ["log.level", "'loud'", "'debug', 'info', 'warning' or 'error'"]),
        ("store.url=ftp://x", ["store.url", "ftp://x", "s3://bucket/prefix"]),
        ("models.0.lora.max_loras=32", ["models.0.lora", "max_cpu_loras is 16", "32"]),
        ("models.0.resources.gpus=2", ["models.0.resources", "tensor_parallel 1"]),
        ("models.0.engine.max_loras=2", ["models.0.engine", "lora.max_loras"]),
        ("models.0.id=a b", ["models.0.id", "'a b'"]),
        ("models=[]", ["models", "at least 1"]),
        ("models.3.id=x", ["models.3", "models.0"]),
        ("models.first.id=x", ["models.first", "models.0"]),
        ("gateway=3", ["gateway", "3"]),
        ("gateway.port=[1", ["gateway.port", "YAML"]),
        ("gateway.port", ["'gateway.port'", "key=value"]),
        ("home=${oc.env:NOT_SET_ANYWHERE}", ["home", "NOT_SET_ANYWHERE"]),
    ],
)
def test_a_bad_setting_is_refused_by_its_path(word: str, told: list[str]) -> None:
    message = refusal(word)
    assert all(part in message for part in told), message
    assert len(message.splitlines()) == 1, message


def test_every_fault_is_told_at_once() -> None:
    message = refusal("gateway.prt=1", "log.level=loud")
    assert "gateway.prt" in message
    assert "log.level" in message


def test_two_models_of_one_id_are_refused(tmp_path: Path) -> None:
    overlay = tmp_path / "o.yaml"
    overlay.write_text("models: [{id: a, source: /x}, {id: a, source: /y}]\n")
    assert "two models have the id 'a'" in refusal(config=overlay)


def test_bad_yaml_is_shown_with_its_line(tmp_path: Path) -> None:
    overlay = tmp_path / "o.yaml"
    overlay.write_text("gateway:\n  port: 8000\n  host: [\n")
    assert "line 4" in refusal(config=overlay)


@pytest.mark.parametrize("content", ["- a\n- b\n", "\xff\xfe"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, content: str) -> None:
    overlay = tmp_path / "o.yaml"
    overlay.write_bytes(content.encode("latin-1"))
    assert "o.yaml" in refusal(config=overlay)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "nothing.yaml" in refusal(config=tmp_path / "nothing.yaml")


def test_an_empty_overlay_changes_nothing(tmp_path: Path) -> None:
    overlay = tmp_path / "o.yaml"
    overlay.write_text("# nothing yet\n")
    assert load(overlay) == load()


def test_home_is_the_setting_then_the_variable_then_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_HOME", "/from/variable")
    assert home(load(None, ["home=/from/setting"])) == Path("/from/setting")
    assert home(load()) == Path("/from/variable")
    monkeypatch.delenv("LORIKEET_HOME")
    assert home(load()) == Path.home() / ".lorikeet"


def test_the_embedded_store_is_a_folder_in_home() -> None:
    assert store_url(load(None, ["home=/a b/c"])) == "file:///a%20b/c/store"
    assert store_url(load(None, ["store.url=s3://bucket/x"])) == "s3://bucket/x"


PLAIN = {
    "gateway.port", "autoscaling.min_replicas", "autoscaling.max_replicas", "autoscaling.up_delay_seconds",
    "autoscaling.down_delay_seconds", "log.level",
}  # fmt: skip


def test_every_setting_says_what_it_means() -> None:
    """A value whose name says it all may go without; every other one has a description."""
    silent = {path for path, described in _leaves(Settings) if not described}
    assert {path.rpartition("models.")[2] for path in silent} <= PLAIN


def _leaves(node: type[BaseModel], path: str = "") -> Iterator[tuple[str, bool]]:
    for name, field in node.model_fields.items():
        inner = field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            inner = getattr(inner, "__args__", (None,))[0]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _leaves(inner, f"{path}{name}.")
        else:
            yield f"{path}{name}", bool(field.description)


def test_a_token_that_was_pasted_into_the_settings_is_not_repeated() -> None:
    told = refusal("imports.hub_token=hf_secret")
    assert "env:NAME or file:/path" in told and "hf_secret" not in told


def test_an_import_bucket_that_is_none_is_refused() -> None:
    assert "s3://bucket/prefix" in refusal("imports.buckets=[file:///etc]")
    assert load(None, ["imports.buckets=[s3://trained/adapters]"]).imports.buckets == ("s3://trained/adapters",)
