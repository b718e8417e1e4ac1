"""Where a base model's weights come from: a folder, a Hugging Face id, or a bucket. Ends in a local folder for vLLM."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path

from adapters_store.errors import InvalidRequest, Unavailable
from adapters_store.objects import open_store
from adapters_store.paging import objects_under
from configs.settings import ModelSettings

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path("models") / "smollm2-135m"  # in home; `cluster/embedded.py` prepares it before Serve starts
HUB_FOLDER = Path("models") / "hub"  # in home, not the user's ~/.cache: home is the volume that outlives a container
_COMPLETE = ".complete"


def fetch_model(model: ModelSettings, home: Path) -> Path:
    """The local folder of `model`'s weights, downloaded into `home`/models first where they are elsewhere. Blocks.

    Raises InvalidRequest for a source that names nothing, Unavailable when it cannot be reached.
    """
    source = model.source
    if source == EMBEDDED:
        source = str(home / EMBEDDED_FOLDER)
    if source.startswith("s3://"):
        return _fetch_bucket(source, home / "models" / model.id.replace("/", "--"))
    if source.startswith("/"):
        folder = Path(source)
        if not (folder / "config.json").is_file():
            raise InvalidRequest(f"models.{model.id}.source is {source}, which holds no config.json: give a Hugging Face model folder")
        return folder
    return _fetch_hub(model.id, source, home / HUB_FOLDER)


def _fetch_hub(model_id: str, source: str, cache: Path) -> Path:
    """Download into `cache`, laid out as huggingface_hub does: what is there whole is not fetched again."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, cache_dir=cache, ignore_patterns=["*.bin", "*.pth", "*.gguf", "original/*"]))
    except Exception as error:
        raise Unavailable(
            f"models.{model_id}.source {source!r} could not be fetched from the Hugging Face hub: {type(error).__name__}. "
            "Check the id, HF_TOKEN and the network, or give a folder or s3:// URI"
        ) from error


def _fetch_bucket(source: str, folder: Path) -> Path:
    """Download every object under an s3:// folder once per node; replicas that start together wait for one download."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _COMPLETE).is_file() and (folder / _COMPLETE).read_text() == source:
            return folder
        store, count = open_store(source, timeout_seconds=600.0), 0
        for item in objects_under(store, ""):
            target = folder / item.key
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (target.is_file() and target.stat().st_size == item.size_bytes):
                store.download(item.key, target, item.size_bytes)
            count += 1
            logger.info("model_file_ready", extra={"file": item.key, "bytes": item.size_bytes})
        if not (folder / "config.json").is_file():
            raise InvalidRequest(f"{source} holds {count} objects and no config.json: give the folder of a Hugging Face model")
        (folder / _COMPLETE).write_text(source)
        return folder
