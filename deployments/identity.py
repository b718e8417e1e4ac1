"""What a process is built from: two that are built from the same need not be restarted, whatever else of the settings has changed.

Serve restarts a deployment's replicas when its version, its resources or its environment change, and changes the rest in place.
"""

from __future__ import annotations

import hashlib

from configs.settings import (
    AutoscalingSettings,
    CacheSettings,
    GatewaySettings,
    ModelSettings,
    RaySettings,
    Settings,
    SharedSettings,
    UploadSettings,
)


def replica_arguments(settings: Settings, model: ModelSettings) -> Settings:
    """The settings as far as a replica of `model` is built from them; the rest has its default.

    How many replicas there are and how many requests each takes is Serve's business, and changes while they run.
    """
    in_place = ("max_requests_at_once", "startup_timeout_seconds")
    defaults = {name: ModelSettings.model_fields[name].default for name in in_place}
    own = model.model_copy(update={**defaults, "autoscaling": AutoscalingSettings()})
    others = {"gateway": GatewaySettings(), "uploads": UploadSettings(), "ray": RaySettings(), "demo_adapters": False}
    return settings.model_copy(update={**others, "models": (own,)})


def gateway_arguments(settings: Settings) -> SharedSettings:
    """The settings as far as a gateway is built from them; which models it serves it learns while it runs."""
    shared = {name: getattr(settings, name) for name in SharedSettings.model_fields}
    gateway = settings.gateway.model_copy(
        update={name: GatewaySettings.model_fields[name].default for name in ("replicas", "host", "port")}
    )
    others = {"gateway": gateway, "cache": CacheSettings(), "ray": RaySettings(), "demo_adapters": False}
    return SharedSettings.model_construct(**{**shared, **others})


def version_of(arguments: SharedSettings) -> str:
    """A short name for `arguments`, the same wherever it is made."""
    return hashlib.sha256(arguments.model_dump_json().encode()).hexdigest()[:16]
