"""What a node of a cluster must be given, whoever starts it: Ray's launcher or Kubernetes."""

from __future__ import annotations

from pathlib import Path

from configs.load import load
from deployments.environment import MAX_CONNECTIONS, environment

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
INSTALLED = "/opt/lorikeet"  # the virtual environment in the image


def node_environment() -> dict[str, str]:
    """The variables that Serve reads, for the template configs/production.yaml, in the image of the Dockerfile."""
    return {
        **environment(load(ROOT / "configs" / "production.yaml")),
        "RAY_SERVE_HAPROXY_MAXCONN": str(MAX_CONNECTIONS),  # the nodes' limit on open files allows as many, whatever it is here
        "RAY_SERVE_HAPROXY_BINARY_PATH": f"{INSTALLED}/bin/lorikeet-haproxy",
    }


def held_adapters_bytes() -> int:
    """Host memory of a replica of the template that holds as many adapters as it may, each of the largest kind: on all linear layers."""
    [model] = load(ROOT / "configs" / "production.yaml").models
    assert model.id == "llama-3.1-8b"
    hidden, keys, inner, layers, bytes_each = 4096, 1024, 14336, 32, 2
    shapes = [(hidden, hidden)] * 2 + [(hidden, keys)] * 2 + [(hidden, inner)] * 3  # q, o; k, v; gate, up, down
    return model.lora.max_cpu_loras * model.lora.max_rank * sum(into + out for into, out in shapes) * layers * bytes_each
