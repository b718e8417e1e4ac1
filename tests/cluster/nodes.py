"""What a node of a cluster must be given, whoever starts it: Ray's launcher or Kubernetes."""

from __future__ import annotations

from pathlib import Path

from configs.load import load
from deployments.environment import MAX_CONNECTIONS, environment

ROOT = Path(__file__).parents[2]
INSTALLED = "/opt/lorikeet"  # the virtual environment in the image


def node_environment() -> dict[str, str]:
    """The variables that Serve reads, for the template configs/production.yaml, in the image of the Dockerfile."""
    return {
        **environment(load(ROOT / "configs" / "production.yaml")),
        "RAY_SERVE_HAPROXY_MAXCONN": str(MAX_CONNECTIONS),  # the nodes' limit on open files allows as many, whatever it is here
        "RAY_SERVE_HAPROXY_BINARY_PATH": f"{INSTALLED}/bin/lorikeet-haproxy",
    }
