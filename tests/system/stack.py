"""The whole platform for tests: `lorikeet up` as a user starts it, two base models, S3 behind it, everything on free ports.

`running_stack` starts one in a folder of its own and stops it as Ctrl-C does. While tests are being written, LORIKEET_TEST_STACK names
the folder of one that already runs (`python -m tests.system.stack FOLDER` starts one to keep), which saves the start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import yaml

from adapters_store.bases import Bases
from adapters_store.history import Actor
from adapters_store.objects import ObjectStore, open_store
from adapters_store.registry import Registry
from cluster import run_file
from cluster.embedded import prepare
from cluster.processes import of_run
from tests.s3 import free_port, moto_server
from tests.serving import serving_environment
from tests.tiny import make_random_adapter, make_tiny_llama
from tests.uploading import files_of, parts

START_TIMEOUT_SECONDS = 420.0
STOP_TIMEOUT_SECONDS = 60.0
BUCKET = "lorikeet-test"
KEY = "lk-test-key-of-the-system-tests"
BASE = "smollm2-135m"
TINY = "tiny"
SLOTS = 2  # max_loras: fewer than the demo adapters, so that slots are always fought for
ROOM = 4  # max_cpu_loras
MAX_RANKS = {
    BASE: 16,
    TINY: 64,
}  # every adapter in a batch costs as if it had the highest rank: that is for the model where it costs little
CPUS = 0.5  # of each; an engine has one thread all the same, and a model that a test adds finds room on two cores
CONTEXT = 1024  # max_model_len of both
MAX_UPLOAD_BYTES = 8 << 20
TINY_BLOCKS = 8192  # of 16 tokens, 64 MiB: all of the KV cache is soon touched, so memory that grows after that is a leak


@dataclass(frozen=True, slots=True)
class Stack:
    """A running platform. `url` ends before /api/v1; `environment` is what a process needs to reach its S3."""

    home: Path
    url: str
    store_url: str
    environment: Mapping[str, str]
    key: str = KEY

    @property
    def api(self) -> str:
        return f"{self.url}/api/v1"

    @property
    def base_folder(self) -> Path:
        """The embedded base model's Hugging Face folder."""
        return self.home / "models" / BASE

    @property
    def tiny_folder(self) -> Path:
        return self.home / TINY

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def client(self, timeout_seconds: float = 120.0) -> httpx.Client:
        """An HTTP client with the key, based at /api/v1/."""
        return httpx.Client(base_url=f"{self.api}/", headers=self.headers, timeout=timeout_seconds)

    def async_client(self, timeout_seconds: float = 120.0) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        return httpx.AsyncClient(base_url=f"{self.api}/", headers=self.headers, timeout=timeout_seconds, limits=limits)

    def store(self) -> ObjectStore:
        """The object store behind it. The environment must name the S3 endpoint: the `stack` fixture sees to that."""
        return open_store(self.store_url)

    def push(self, folder: Path, name: str) -> str:
        """Publish a PEFT folder as `name` (owner/name); returns its exact version, owner/name@digest."""
        with self.client() as client:
            response = client.post(f"adapters/{name}/versions", files=parts(files_of(folder)))
        assert response.status_code in (200, 201), response.text
        version: str = response.json()["id"]
        return version

    def publish(self, folder: Path, name: str) -> str:
        """Have `folder` be a ready version that no replica here has loaded, as after a restart; returns its exact version."""
        store, (owner, _, short) = self.store(), name.partition("/")
        fit = Bases(store, (BASE, TINY)).inspect(folder)
        return Registry(store).publish(folder, owner, short, fit, created_by=Actor("test", "test")).adapter.exact_name

    def push_random(self, folder: Path, name: str, *, seed: int, base: str = TINY, rank: int = 8) -> str:
        """Publish a random adapter of the tiny model (or of the embedded one), made in `folder`; returns its exact version."""
        make_random_adapter(folder, self.tiny_folder if base == TINY else self.base_folder, seed=seed, rank=rank, base_name=base)
        return self.push(folder, name)


@contextlib.contextmanager
def running_stack(home: Path, model_home: Path, *overrides: str) -> Iterator[Stack]:
    """Start everything, S3 included; yield it when it is ready; stop it and check that no process is left.

    `model_home`: the embedded model's folder, prepared already.
    """
    with moto_server() as s3:
        s3.create_bucket(BUCKET)
        environment = {**os.environ, **serving_environment(), **s3.environment, "LORIKEET_HOME": str(home), "LORIKEET_API_KEY": KEY}
        port = free_port()
        stack = Stack(home, f"http://127.0.0.1:{port}", f"s3://{BUCKET}/prefix", s3.environment)
        config = _write_config(stack, model_home, port)
        with running_up(home, config, environment, *overrides):
            yield stack


@contextlib.contextmanager
def running_up(home: Path, config: Path, environment: Mapping[str, str], *overrides: str) -> Iterator[None]:
    """`lorikeet up` of `config` with home `home`, from when it is ready until Ctrl-C has stopped it; checks that no process is left."""
    log = (home / "up.log").open("wb")
    command = [sys.executable, "-m", "cluster.cli", "up", "--config", str(config), *overrides]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        run_id = _wait_ready(process, home)
        yield
    finally:
        _stop(process, home)
        log.close()
    assert process.returncode == 0, f"lorikeet up ended with {process.returncode}:\n{_tail(home)}"
    left = of_run(run_id)
    assert not left, f"lorikeet up left processes behind: {left}"


def _write_config(stack: Stack, model_home: Path, port: int) -> Path:
    """Two base models on the CPU: the embedded one in float32, and a tiny one for tests where only the path matters."""
    home = stack.home
    home.mkdir(parents=True, exist_ok=True)
    stack.base_folder.parent.mkdir(exist_ok=True)
    if not stack.base_folder.exists():
        stack.base_folder.symlink_to(model_home)
    if not stack.tiny_folder.exists():
        make_tiny_llama(stack.tiny_folder, model_home)
    engine = {"dtype": "float32", "max_model_len": CONTEXT, "enforce_eager": True}
    lora = {"max_loras": SLOTS, "max_cpu_loras": ROOM}
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1"}
    tools = {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}
    models = [
        {
            "id": BASE,
            "source": "embedded",
            "engine": {**engine, **tools, "max_num_seqs": 64},
            "lora": {**lora, "max_rank": MAX_RANKS[BASE]},
            "environment": environment,
        },
        {
            "id": TINY,
            "source": str(stack.tiny_folder),
            "engine": {**engine, "max_num_seqs": 512, "num_gpu_blocks_override": TINY_BLOCKS},
            "lora": {**lora, "max_rank": MAX_RANKS[TINY]},
            # oneDNN keeps code for a thousand sizes of a batch, which looks like a leak for as long as new sizes come.
            "environment": {**environment, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"},
        },
    ]
    settings = {
        "store": {"url": stack.store_url},
        "gateway": {"port": port},
        "uploads": {"max_bytes": MAX_UPLOAD_BYTES},
        "models": [{**model, "resources": {"cpus": CPUS}} for model in models],
        "demo_adapters": True,
    }
    path = home / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _wait_ready(process: subprocess.Popen[bytes], home: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"lorikeet up ended with {process.returncode} before it was ready:\n{_tail(home)}")
        run = run_file.read(home)
        if run is not None and run.ready_at is not None:
            return run.run_id
        time.sleep(0.2)
    raise RuntimeError(f"not ready after {START_TIMEOUT_SECONDS:.0f} s:\n{_tail(home)}")


def _stop(process: subprocess.Popen[bytes], home: Path) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
        raise AssertionError(f"lorikeet up did not stop within {STOP_TIMEOUT_SECONDS:.0f} s of Ctrl-C:\n{_tail(home)}") from None


def _tail(home: Path) -> str:
    return (home / "up.log").read_text(errors="replace")[-4000:]


def kept_stack(home: Path) -> Stack:
    """The stack that `python -m tests.system.stack` runs in `home`."""
    fields = json.loads((home / "stack.json").read_text())
    return Stack(home, fields["url"], fields["store_url"], fields["environment"])


def main() -> None:
    """Run a stack in the given folder until Ctrl-C."""
    home = Path(sys.argv[1]).absolute()
    with running_stack(home, prepare(home.parent / "lorikeet-models", print), *sys.argv[2:]) as stack:
        (home / "stack.json").write_text(json.dumps({**asdict(stack), "home": str(home)}))
        print(f"ready: export LORIKEET_TEST_STACK={home}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
