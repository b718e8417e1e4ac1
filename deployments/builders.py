"""The applications as Serve's own configuration names them, `import_path: deployments.builders:model`; see `serve_config.py`.

No `from __future__ import annotations` here: Serve makes the arguments by the annotations.
"""

from ray.serve import Application

from configs.settings import Settings, SharedSettings
from deployments import app


def model(arguments: Settings) -> Application:
    """A base model: the only one of the arguments. Serve's configuration says how many replicas and how many requests each takes."""
    return app.replica_application(arguments)


def gateway(arguments: SharedSettings) -> Application:
    """The gateways. Serve's configuration says how many, and which models they serve."""
    return app.gateway_application(arguments)
