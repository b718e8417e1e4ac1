"""The route that loads a version before it is asked for. What is done so by itself, before an alias moves, is in `warming.py`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Request

from adapters_store.errors import NotFound
from adapters_store.names import ModelRef, check_version
from deployments.api.caller import Changing
from deployments.api.services import services_of

router = APIRouter(tags=["adapters"], prefix="/adapters/{owner}/{name}")

MAX_REPLICAS = 10_000


@router.post("/versions/{version}/warm", summary="Load a version where it will be asked for, before it is")
async def warm_version(
    request: Request,
    caller: Changing,
    owner: str,
    name: str,
    version: str,
    replicas: int = Query(1, ge=1, le=MAX_REPLICAS, description="on so many, the one that is asked first before others"),
) -> dict[str, Any]:
    """Returns when it is loaded. A model that sleeps is not woken: 503."""
    services = services_of(request)
    ref = ModelRef(owner, name, None, check_version(version))
    adapter = await services.run(lambda: services.registry.read(ref))
    if adapter.base not in services.bases:
        raise NotFound(f"{adapter.exact_name} is an adapter of {adapter.base}, which is not served here", param="version")
    loaded = await services.warmer.load(adapter, replicas, services.settings.gateway.request_timeout_seconds)
    return {
        "id": adapter.exact_name,
        "object": "adapter.warm",
        "version": adapter.version,
        "base": adapter.base,
        "replicas": len(loaded.warmed),
        "running": loaded.running,
        "found": [warmed.found for warmed in loaded.warmed],
        "wait_ms": [warmed.wait_ms for warmed in loaded.warmed],
    }
