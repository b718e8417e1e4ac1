"""The routes that take versions and adapters away, and give them back while their files are there."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from deployments.api.caller import Changing
from deployments.api.services import services_of

router = APIRouter(tags=["adapters"], prefix="/adapters/{owner}/{name}")


@router.delete("/versions/{version}", summary="Retire a version")
async def retire_version(request: Request, caller: Changing, owner: str, name: str, version: str) -> dict[str, Any]:
    """Unknown to new requests when this returns; requests that run on it finish."""
    services = services_of(request)
    adapter = await services.run(lambda: services.registry.retirement.retire_version(owner, name, version))
    await services.settle(owner, name)
    return {"id": adapter.exact_name, "object": "adapter.version", "retired": True}


@router.post("/versions/{version}/undelete", summary="Serve a retired version again")
async def undelete_version(request: Request, caller: Changing, owner: str, name: str, version: str) -> dict[str, Any]:
    services = services_of(request)
    adapter = await services.run(lambda: services.registry.retirement.undelete_version(owner, name, version))
    await services.settle(owner, name)
    return {"id": adapter.exact_name, "object": "adapter.version", "retired": False}


@router.delete("", summary="Delete an adapter: retire all its versions")
async def retire_adapter(request: Request, caller: Changing, owner: str, name: str) -> dict[str, Any]:
    """Unknown to new requests when this returns; requests that run on it finish."""
    services = services_of(request)
    await services.run(lambda: services.registry.retirement.retire(owner, name, by=caller.actor))
    await services.settle(owner, name)
    return {"id": f"{owner}/{name}", "object": "adapter", "retired": True}


@router.post("/undelete", summary="Give back an adapter as it was when it was deleted")
async def undelete_adapter(request: Request, caller: Changing, owner: str, name: str) -> dict[str, Any]:
    """Its versions and aliases, while their files are there."""
    services = services_of(request)
    await services.run(lambda: services.registry.retirement.undelete(owner, name, by=caller.actor))
    await services.settle(owner, name)
    return {"id": f"{owner}/{name}", "object": "adapter", "retired": False}
