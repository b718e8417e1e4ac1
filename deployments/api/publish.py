"""Publishing an adapter's files, however they came here: sent at once, in parts, or fetched. For `adapters.py` and `upload_parts.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Query
from fastapi.responses import JSONResponse

from adapters_store.adapter import Adapter, version_of
from adapters_store.admissions import PENDING, READY, REJECTED, Admission
from adapters_store.errors import InvalidAdapter, InvalidRequest
from adapters_store.history import Actor
from adapters_store.labels import NO_CHANGE, LabelChange
from adapters_store.names import PRODUCTION
from adapters_store.registry import Published
from adapters_store.versions import hash_files
from deployments.api.names import check_names
from deployments.api.services import Services


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the files are to become: a version of owner/name, published by `by`, who may; the labels that the name gets with it, and the
    alias that is pointed at it."""

    owner: str
    name: str
    by: Actor
    labels: LabelChange = NO_CHANGE
    alias: str = PRODUCTION


def _upload_alias(
    alias: Annotated[str, Query(description="the alias to point at it; with another one, production stays where it is")] = PRODUCTION,
) -> str:
    check_names(alias=alias)
    return alias


UploadAlias = Annotated[str, Depends(_upload_alias)]


async def publish_folder(services: Services, files: Path, wanted: Wanted) -> Published:
    """Judge and publish the adapter in `files`; returns when every gateway serves it."""
    if await services.warming.is_due(wanted.owner, wanted.name, wanted.alias):
        published = await _publish_warm(services, files, wanted)
    else:
        published = await services.run(lambda: _publish(services, files, wanted, wanted.alias))
    published = await _admitted(services, published, wanted.alias)
    await settle_published(services, published, wanted)
    return published


async def publish_known(services: Services, version: str, wanted: Wanted) -> Published | None:
    """The same for content that a version has which is there and served: nothing of it is read again. None where there is none."""
    await services.warming.before_move(wanted.owner, wanted.name, wanted.alias, version)
    published = await services.run(lambda: _point(services, version, wanted))
    if published is not None:
        published = await _admitted(services, published, wanted.alias)
        await settle_published(services, published, wanted)
    return published


async def settle_published(services: Services, published: Published, wanted: Wanted) -> None:
    """Labels count too: who may see a name is under the same lease as what it means."""
    if published.created or published.alias_moved or wanted.labels != NO_CHANGE:
        await services.settle(wanted.owner, wanted.name)


def published_response(published: Published) -> JSONResponse:
    adapter = published.adapter
    where = f"/api/v1/adapters/{adapter.owner}/{adapter.name}"
    if published.pending:
        body = {**version_fields(adapter), "aliases": [], "status": PENDING}
        return JSONResponse(body, 202, {"location": f"{where}/versions/{adapter.version}"})
    body = {**version_fields(adapter), "aliases": [published.alias] if published.alias is not None else [], "status": READY}
    return JSONResponse(body, 201 if published.created else 200, {"location": where})


def version_fields(adapter: Adapter) -> Mapping[str, Any]:
    """A version as every answer shows it."""
    return {
        "id": adapter.exact_name,
        "object": "adapter.version",
        "owner": adapter.owner,
        "name": adapter.name,
        "version": adapter.version,
        "base": adapter.base,
        "rank": adapter.rank,
        "size_bytes": adapter.size_bytes,
        "created_at": int(adapter.created_at),
        "created_by": adapter.created_by,
    }


async def _admitted(services: Services, published: Published, alias: str) -> Published:
    """Tried on a replica, if it has to be and one is awake. Raises InvalidAdapter when it was rejected."""
    if not published.pending:
        return published
    return as_published(await services.tryouts.after_publish(published.adapter), published, alias)


def as_published(found: Admission, published: Published, alias: str) -> Published:
    """`published`, for which `alias` was wanted, by what the store holds of it now. Raises InvalidAdapter when it was rejected."""
    if found.status == REJECTED:
        raise InvalidAdapter(found.reasons, param="files")
    if found.status == PENDING:
        return replace(published, pending=True)
    points = alias in found.aliases
    return replace(published, pending=False, alias=alias if points else None, alias_moved=points)


async def _publish_warm(services: Services, files: Path, wanted: Wanted) -> Published:
    """Stored first, so that replicas can load it; its alias moves when they have. One that is to be tried is loaded once it was."""
    stored = await services.run(lambda: _publish(services, files, wanted, None))
    if not stored.pending:
        await services.warming.before(stored.adapter, wanted.alias)
    pointed = await services.run(lambda: _point(services, stored.adapter.version, wanted))
    if pointed is None:  # it was taken away meanwhile
        pointed = await services.run(lambda: _publish(services, files, wanted, wanted.alias))
    return replace(pointed, created=stored.created)


def _point(services: Services, version: str, wanted: Wanted) -> Published | None:
    return services.registry.publish_known(
        wanted.owner, wanted.name, version, created_by=wanted.by, alias=wanted.alias, labels=wanted.labels
    )


def _publish(services: Services, files: Path, wanted: Wanted, alias: str | None) -> Published:
    try:
        fit = services.inspect(files)
    except InvalidAdapter as error:
        _remember_refusal(services, files, wanted, error)
        raise
    return services.registry.publish(files, wanted.owner, wanted.name, fit, created_by=wanted.by, alias=alias, labels=wanted.labels)


def _remember_refusal(services: Services, files: Path, wanted: Wanted, error: InvalidAdapter) -> None:
    """So that it can be read about; files that no version may have (links, odd names) have no digest to be read about by."""
    try:
        version = version_of(hash_files(files))
    except InvalidRequest:
        return
    services.registry.admissions.refuse(wanted.owner, wanted.name, version, error.reasons, by=wanted.by)
