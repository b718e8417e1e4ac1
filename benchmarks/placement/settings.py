"""What is measured: the cluster, its engines, and how many requests of what length. Every choice that shapes a figure is here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OURS, SERVE, RANDOM = "bounded_load", "serve_multiplexed", "random"
POLICIES = (OURS, SERVE, RANDOM)
HOME = "home_alone"  # every request to its adapter's first choice, however busy: what one replica carries, in the part `hot`

REPLICAS = 4  # one on each node
SLOTS = 8  # max_loras: adapters in one engine batch
STEP_MS = 25.0  # as a decode step of a model of some billion parameters; long, so that two cores carry four engines
TOKENS = 24  # of each answer: with its first step, 0.6 s
STORE_MS = 40.0  # what the object store takes to begin an answer, as S3 does; one next door takes next to none
ROUNDS, QUICK_ROUNDS = 3, 1


def url_file(home: Path, policy: str) -> Path:
    """Where the gateway of a policy writes its URL once it listens."""
    return home / f"gateway-{policy}.url"


@dataclass(frozen=True, slots=True)
class Shape:
    """An adapter's files: q_proj and v_proj of so many layers, so wide. The null worker reads all of it and uses none."""

    layers: int
    hidden: int
    rank: int


@dataclass(frozen=True, slots=True)
class ZipfPart:
    """Zipf's law over the adapters. `held` is max_cpu_loras: with 16 each, 64 of 200 adapters fit in the four engines, so that it
    matters which; `batch` is max_num_seqs, above what is in flight on one replica, so that no engine's batch is ever full."""

    held: int = 16
    batch: int = 64
    at_once: int = 32
    warm_up: int = 600
    measured: int = 1500
    shape: Shape = Shape(layers=24, hidden=512, rank=8)  # 96 tensors, 0.8 MB: two cores also do the work of four nodes


@dataclass(frozen=True, slots=True)
class HotPart:
    """One adapter for all. A batch of 4 at 25 ms a step is 6.7 requests a second from each replica: the engines are what is full, and not
    the cores. In flight are 16 for each replica, so that none waits for work."""

    batch: int = 4
    at_once: int = 64
    measured: int = 300


@dataclass(frozen=True, slots=True)
class ColdPart:
    """Cold adapters on one replica, and a stream that runs beside."""

    together: int = 8
    beside: int = 20
    stream_tokens: int = 160  # 4 s
    held: int = 256  # max_cpu_loras, above what all rounds load: nothing has to go first
    rounds: int = 5
    shape: Shape = Shape(layers=32, hidden=1024, rank=16)  # 128 tensors, 4.2 MB
