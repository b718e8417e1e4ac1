"""The adapters: alike in their weights, distinct in their versions, published straight into the store.

Each policy in each round has adapters of its own, so that it finds none of them loaded or on disk: nobody inherits the caches of who
came before, and nothing has to be emptied.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapters_store.history import Actor
from adapters_store.objects import ObjectStore, open_store
from adapters_store.paging import objects_under
from adapters_store.registry import Registry
from adapters_store.validate import Fit
from benchmarks.placement.settings import Shape

THREADS = 4


def publish(store: ObjectStore, owner: str, count: int, base: str, shape: Shape) -> list[str]:
    """`count` adapters of `base` under `owner`; their names as requests name them.

    Published into a folder and copied from there: what a thousand of them would cost over HTTP is not what is measured. Listings, which
    nobody asks for here, are left out.
    """
    with tempfile.TemporaryDirectory() as beside, _weights(base, shape) as template, ThreadPoolExecutor(THREADS) as threads:
        near = open_store(f"file://{beside}")
        names = [_publish_one(near, template, owner, f"a{number:03d}", Fit(base, shape.rank)) for number in range(count)]
        list(threads.map(lambda item: store.put(item.key, near.get(item.key)[0]), objects_under(near, f"adapters/{owner}/")))
        return names


def _publish_one(store: ObjectStore, template: Path, owner: str, name: str, fit: Fit) -> str:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for file in template.iterdir():
            shutil.copy(file, folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "revision": f"{owner}/{name}"}))
        Registry(store).publish(folder, owner, name, fit, created_by=Actor("bench", "bench"))
    return f"{owner}/{name}"


@contextmanager
def _weights(base: str, shape: Shape) -> Iterator[Path]:
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(shape.layers):
        for module in ("q_proj", "v_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(shape.rank, shape.hidden, generator=random).to(torch.bfloat16)
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(shape.hidden, shape.rank, generator=random).to(torch.bfloat16)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": shape.rank,
        "lora_alpha": 2 * shape.rank,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config))
        yield folder
