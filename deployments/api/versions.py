"""What one version is: ready, waiting to be tried, or rejected and why."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from adapters_store.admissions import READY
from adapters_store.errors import NotFound
from adapters_store.names import check_version
from deployments.api.caller import Seeing
from deployments.api.publish import version_fields
from deployments.api.services import services_of

router = APIRouter(tags=["adapters"], prefix="/adapters/{owner}/{name}")


@router.get("/versions/{version}", summary="A version: whether it is ready, pending or rejected, and why")
async def describe_version(request: Request, caller: Seeing, owner: str, name: str, version: str) -> dict[str, Any]:
    """Rejections can be read for a day, also of uploads that were refused before anything of them was stored. Its owner's to read."""
    services = services_of(request)
    check_version(version)
    found = await services.run(lambda: services.registry.admissions.of(owner, name, version))
    if found.status != READY and not caller.owns(owner):
        raise NotFound(f"adapter version {owner}/{name}@{version} does not exist", param="version")
    fields = version_fields(found.adapter) if found.adapter is not None else {"object": "adapter.version", "owner": owner, "name": name}
    told = {"reasons": list(found.reasons), "since": int(found.at)} if found.status != READY else {}
    return {**fields, "version": found.version, "status": found.status, **told}
