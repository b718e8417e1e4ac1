"""The adapters' routes: upload a version, list, describe. More are in `aliases.py`, `labels.py` and `retirement.py`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from adapters_store.errors import Overloaded
from adapters_store.index import Listing
from adapters_store.markers import AdapterSummary
from deployments.api.caller import Caller, Changing, Seeing
from deployments.api.etags import bare, quoted
from deployments.api.imports import fetch_adapter, is_import
from deployments.api.labels import TagPairs, UploadLabels, label_fields
from deployments.api.names import check_after, check_names
from deployments.api.publish import UploadAlias, Wanted, publish_folder, published_response, version_fields
from deployments.api.services import services_of
from deployments.api.uploads import receive_adapter, staging_folder

router = APIRouter(tags=["adapters"], prefix="/adapters")


@router.post(
    "/{owner}/{name}/versions",
    status_code=201,
    summary="Upload a version: multipart files, or one .tar.gz or .zip; or import one: JSON that names its source",
)
async def upload_version(
    request: Request, caller: Changing, labels: UploadLabels, owner: str, name: str, alias: UploadAlias
) -> JSONResponse:
    """Validate and publish; the next request for `owner/name` is served by it. The same content again is 200, same version."""
    services = services_of(request)
    if services.uploads_at_once.locked():
        raise Overloaded("this gateway takes as many uploads as it may: try again shortly", retry_after_seconds=5.0)
    async with services.uploads_at_once, staging_folder(services.uploads, services.threads) as folder:
        if is_import(request):
            files = await fetch_adapter(request, folder, services)
        else:
            files = await receive_adapter(request, folder, services.settings.uploads, services.threads)
        published = await publish_folder(services, files, Wanted(owner, name, caller.actor, labels, alias))
    return published_response(published)


@router.get("", summary="List adapters")
async def list_adapters(
    request: Request,
    caller: Caller,
    tags: TagPairs,
    owner: str | None = None,
    base: str | None = None,
    limit: int = Query(100, ge=1, le=1000),
    after: str | None = None,
) -> dict[str, Any]:
    """By name, paged: pass `next` as `after` while `has_more` is true. A page may be short and yet not the last."""
    services = services_of(request)
    if owner is not None:
        check_names(owner=owner)
    if after is not None:
        check_after(after)
    listing = Listing(owner, base, tags, caller.viewer)
    page = await services.run(lambda: services.registry.list_adapters(listing, start_after=after, limit=limit))
    return {"object": "list", "data": [_row(item) for item in page.items], "has_more": page.next is not None, "next": page.next}


def _row(item: AdapterSummary) -> dict[str, Any]:
    return {
        "id": item.adapter_name,
        "owner": item.owner,
        "name": item.name,
        "base": item.base,
        "version": item.version,
        "rank": item.rank,
        **label_fields(dict(item.tags), item.private),
    }


@router.get("/{owner}/{name}", summary="Versions and aliases of an adapter")
async def describe_adapter(request: Request, caller: Seeing, owner: str, name: str) -> JSONResponse:
    services = services_of(request)
    detail = await services.run(lambda: services.registry.describe(owner, name))
    body = {
        "id": f"{owner}/{name}",
        "object": "adapter",
        "versions": [version_fields(v) for v in detail.versions],
        "aliases": dict(detail.aliases),
        "canaries": {alias: {"version": canary.version, "weight": canary.weight} for alias, canary in detail.canaries.items()},
        "shadows": {alias: {"version": shadow.version, "share": shadow.share} for alias, shadow in detail.shadows.items()},
        **label_fields(dict(detail.tags), detail.private),
        "etag": bare(detail.etag),
        **({"pending": list(detail.pending), "rejected": list(detail.rejected)} if caller.owns(owner) else {}),
    }
    return JSONResponse(body, headers={"etag": quoted(detail.etag)})
