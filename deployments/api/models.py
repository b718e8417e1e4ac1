"""GET /models and /models/{name}: OpenAI's shape; adapters carry their base model as `parent`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Request

from adapters_store.index import Listing
from adapters_store.markers import AdapterSummary
from deployments.api.caller import Caller
from deployments.api.names import check_after
from deployments.api.services import Services, services_of

router = APIRouter(tags=["models"])


@router.get("/models", summary="List base models and adapters")
async def list_models(
    request: Request, caller: Caller, limit: int = Query(1000, ge=1, le=1000), after: str | None = None
) -> dict[str, Any]:
    """Base models first, then adapters by name. Paged: pass the last id as `after` while `has_more` is true."""
    services = services_of(request)
    among_bases = after is None or after in services.bases
    if after is not None and not among_bases:
        check_after(after)
    data = [_base(base, services) for base in sorted(services.bases) if among_bases and (after is None or base > after)][:limit]
    if len(data) == limit:
        return {"object": "list", "data": data, "has_more": True}
    start_after, room = None if among_bases else after, limit - len(data)
    page = await services.run(lambda: services.registry.list_adapters(Listing(viewer=caller.viewer), start_after=start_after, limit=room))
    data += [_adapter(item) for item in page.items]
    return {"object": "list", "data": data, "has_more": page.next is not None}


@router.get("/models/{name:path}", summary="One base model or adapter")
async def get_model(request: Request, caller: Caller, name: str) -> dict[str, Any]:
    services = services_of(request)
    target = await services.target(name, caller.viewer)
    if target.adapter is None:
        return _base(target.base, services)
    adapter = target.adapter
    return {
        "id": name,
        "object": "model",
        "created": int(adapter.created_at),
        "owned_by": adapter.owner,
        "parent": adapter.base,
        "version": adapter.exact_name,
    }


def _base(base: str, services: Services) -> dict[str, Any]:
    return {"id": base, "object": "model", "created": services.started_at, "owned_by": "lorikeet", "parent": None}


def _adapter(item: AdapterSummary) -> dict[str, Any]:
    return {
        "id": f"{item.owner}/{item.name}",
        "object": "model",
        "created": int(item.created_at),
        "owned_by": item.owner,
        "parent": item.base,
    }
