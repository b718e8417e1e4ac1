"""`lorikeet doctor`: whether this machine can serve these settings, one line per question, each with its remedy.

`lorikeet up` asks the questions that must be answered well before it starts (`require`); the command asks all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from adapters_store.errors import LorikeetError
from adapters_store.objects import open_store
from adapters_store.probe import check_conditional_writes, check_listing_order
from cluster import ports, run_file
from cluster.packages import check_packages
from configs.load import home, store_url
from configs.settings import GIB, Settings

State = Literal["ok", "warn", "fail"]

MEMORY_BESIDE_MODELS_BYTES = int(1.5 * GIB)  # Ray's daemons, Serve's controller, a gateway: measured 1.1 GiB
ENGINE_BYTES = int(1.5 * GIB)  # a vLLM process on the CPU before weights of note and KV cache
MIN_FREE_DISK_BYTES = GIB
NVIDIA_SMI_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Check:
    """One answered question. `remedy` is empty when all is well."""

    name: str
    state: State
    detail: str
    remedy: str = ""


class CheckFailed(Exception):
    """This machine cannot serve these settings; the message holds each reason with its remedy."""


def require(settings: Settings) -> None:
    """The questions without which starting makes no sense. Raises CheckFailed."""
    failed = [check for check in _answers(settings, (check_python, check_port, check_disk, check_gpu)) if check.state == "fail"]
    if failed:
        raise CheckFailed("\n".join(f"{check.detail}: {check.remedy}" for check in failed))


def examine(settings: Settings) -> list[Check]:
    """Every question, in the order a newcomer would fix the answers."""
    questions = (check_python, check_packages_of_lock, check_port, check_memory, check_gpu, check_disk, check_store)
    return list(_answers(settings, questions))


def _answers(settings: Settings, questions: Iterable[Callable[[Settings], Check]]) -> Iterable[Check]:
    return (question(settings) for question in questions)


def check_python(settings: Settings) -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] == (3, 11):
        return Check("python", "ok", version)
    return Check("python", "fail", f"Python {version}", "use Python 3.11, for which the CPU build of torch exists: make clean run")


def check_packages_of_lock(settings: Settings) -> Check:
    missing, differing = check_packages()
    if missing:
        return Check("packages", "fail", f"not installed: {', '.join(missing)}", "install the lock: make venv")
    if differing:
        return Check("packages", "warn", f"not as locked: {', '.join(differing)}", "install the lock: make venv")
    return Check("packages", "ok", "as locked")


def check_port(settings: Settings) -> Check:
    host, port = settings.gateway.host, settings.gateway.port
    if ports.is_free(host, port):
        return Check("port", "ok", f"{port} is free")
    run = run_file.read(home(settings))
    if run is not None and run.pid != os.getpid() and run.lives and run.url.endswith(f":{port}"):
        return Check("port", "ok", f"{port} is in use by this lorikeet (pid {run.pid})")
    if settings.ray.address:
        return Check("port", "ok", f"{port} is in use here; Serve in the Ray cluster at {settings.ray.address} may hold it")
    remedy = f"stop it, or set gateway.port={port + 1 if port < 65535 else port - 1}"
    return Check("port", "fail", f"port {port} is in use by {ports.holder(port)}", remedy)


def check_memory(settings: Settings) -> Check:
    """A rough sum: engines on the CPU with their KV caches, and what runs beside them."""
    engines = [model for model in settings.models if not model.resources.gpus]
    kv_gib = sum(float(model.environment.get("VLLM_CPU_KVCACHE_SPACE", "4")) for model in engines)
    needed = MEMORY_BESIDE_MODELS_BYTES + len(engines) * ENGINE_BYTES + int(kv_gib * GIB)
    available = _available_bytes()
    detail = f"{available / GIB:.1f} GiB available, about {needed / GIB:.1f} GiB needed"
    if available >= needed:
        return Check("memory", "ok", detail)
    return Check("memory", "warn", detail, "close other programs, or lower VLLM_CPU_KVCACHE_SPACE and max_model_len of the models")


def check_gpu(settings: Settings) -> Check:
    needed = max((model.resources.gpus for model in settings.models), default=0)
    found = _gpus()
    if not needed:
        return Check("gpu", "ok", f"{len(found)} found, none needed")
    if settings.ray.address:
        return Check("gpu", "ok", f"{needed} needed per replica; the Ray cluster at {settings.ray.address} provides them")
    if len(found) >= needed:
        return Check("gpu", "ok", "; ".join(found))
    remedy = "check `nvidia-smi`, serve on the CPU with configs/base.yaml, or join a cluster that has them with ray.address="
    return Check("gpu", "fail", f"{len(found)} GPUs found, {needed} needed by a replica", remedy)


def check_disk(settings: Settings) -> Check:
    free = shutil.disk_usage(_existing(home(settings))).free
    detail = f"{free / GIB:.1f} GiB free where home is"
    if free < MIN_FREE_DISK_BYTES:
        return Check("disk", "fail", detail, "free some space, or put home= on another disk")
    if free < settings.cache.max_bytes:
        return Check("disk", "warn", f"{detail}, less than the adapter cache may take", f"set cache.max_bytes below {free}")
    return Check("disk", "ok", detail)


def check_store(settings: Settings) -> Check:
    url = store_url(settings)
    remedy = "check store.url, AWS_ENDPOINT_URL and the credentials; the bucket must exist and let us read, write, list and delete"
    try:
        store = open_store(url, timeout_seconds=settings.store.timeout_seconds)
        honoured = check_conditional_writes(store)
        ordered = check_listing_order(store)
    except LorikeetError as error:
        return Check("store", "fail", f"{url}: {error.message}", remedy)
    if not honoured:
        told = "use a store that honours If-Match and If-None-Match on PUT: without them two publishers overwrite each other"
        return Check("store", "fail", f"{url} ignores conditional writes", told)
    if not ordered:
        told = "use a store that lists keys in their order, as S3 does: here pages of adapters may leave some out, or repeat them"
        return Check("store", "warn", f"{url} lists its keys folder by folder", told)
    return Check("store", "ok", f"{url} answers and honours conditional writes")


def _available_bytes() -> int:
    """Free memory, by the container's limit where there is one."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return available
    return min(available, int(limit) - used) if limit.isdigit() else available


def _gpus() -> list[str]:
    """The GPUs that the driver lists, one line each."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.partition(" (UUID")[0] for line in listed.stdout.splitlines() if line.startswith("GPU ")]


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())
