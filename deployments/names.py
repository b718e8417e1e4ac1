"""What Lorikeet's applications and deployments are called inside Ray Serve."""

from __future__ import annotations

GATEWAY_APP = "lorikeet"
GATEWAY = "Gateway"
REPLICA = "Replica"


def app_of(model_id: str) -> str:
    """The Serve application of a base model."""
    return f"model-{model_id.replace('/', '--')}"
