"""The routes of what stands beside an alias: its canary, its shadow, and what was counted of them.

As with aliases, what a change leads to is warm before, and it returns when its lease is over: from then on every gateway splits by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters_store import canary as store
from adapters_store.adapter import Adapter
from adapters_store.canary import Canary, Shadow
from adapters_store.errors import InvalidRequest, NotFound
from adapters_store.names import check_version
from adapters_store.tally import Tally
from adapters_store.trials import CANARY, SHADOW, STABLE
from deployments.api.body import read_body
from deployments.api.caller import Changing, Seeing
from deployments.api.etags import IfMatch, quoted
from deployments.api.names import check_names
from deployments.api.openapi import json_body
from deployments.api.services import Services, services_of

router = APIRouter(tags=["aliases"], prefix="/adapters/{owner}/{name}/aliases/{alias}")

Body = TypeVar("Body", bound=BaseModel)

MAX_BODY_BYTES = 16 << 10

_Percent = Annotated[float, Field(ge=0, le=store.ALL, allow_inf_nan=False)]


class GuardBody(BaseModel):
    """When a canary has failed, over each so many requests of it."""

    model_config = ConfigDict(extra="forbid")

    requests: Annotated[int, Field(ge=1, le=store.MAX_GUARD_REQUESTS, description="judged over each so many requests of it")] = 200
    error_points: Annotated[_Percent, Field(description="percentage points that its error rate may be above the old version's")] = 2.0
    ttft_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False, description="how many times the old version's p95 TTFT is borne")] = 1.5


class StartCanary(BaseModel):
    """The body of PUT …/aliases/{alias}/canary."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(description="the version to try: its digest, or a unique prefix of at least 8 digits")
    weight: _Percent = Field(description="percent of the people who are answered by it")
    guard: GuardBody | None = Field(GuardBody(), description="what ends it; null for nothing")


class StartShadow(BaseModel):
    """The body of PUT …/aliases/{alias}/shadow."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(description="the version to try: its digest, or a unique prefix of at least 8 digits")
    share: _Percent = Field(description="percent of the requests that are copied to it")


@router.get("", summary="What an alias serves, what stands beside it, and what was counted of that")
async def get_alias(request: Request, caller: Seeing, owner: str, name: str, alias: str) -> JSONResponse:
    """Counts of all gateways, a second or two old."""
    services = services_of(request)
    check_names(alias=alias)
    detail = await services.run(lambda: services.registry.describe(owner, name))
    if alias not in detail.aliases:
        raise NotFound(
            f"adapter '{owner}/{name}' has no alias '{alias}': it has {', '.join(sorted(detail.aliases)) or 'none'}", param="alias"
        )
    canary, shadow = detail.canaries.get(alias), detail.shadows.get(alias)
    body = {
        "id": f"{owner}/{name}:{alias}",
        "object": "adapter.alias",
        "version": detail.aliases[alias],
        "canary": await _canary_counted(services, owner, name, canary) if canary is not None else None,
        "shadow": await _shadow_counted(services, owner, name, shadow) if shadow is not None else None,
    }
    return JSONResponse(body, headers={"etag": quoted(detail.etag)})


@router.put("/canary", summary="Have another version answer some of the people", openapi_extra=json_body(StartCanary))
async def put_canary(request: Request, caller: Changing, if_match: IfMatch, owner: str, name: str, alias: str) -> JSONResponse:
    """The same version again changes its weight and guard. Which people is settled by their place: a higher weight takes nobody off."""
    services, by = services_of(request), caller.actor
    wanted = await _parsed(request, StartCanary, '{"version": "<digest>", "weight": 10}')
    check_names(alias=alias)
    await _check_served(services, owner, name, wanted.version)
    guard = None if wanted.guard is None else store.Guard(**wanted.guard.model_dump())
    canaries = services.registry.canaries
    await services.warming.before_move(owner, name, alias, wanted.version)
    adapter, etag = await services.run(
        lambda: canaries.start(owner, name, alias, wanted.version, weight=wanted.weight, guard=guard, by=by, if_match=if_match)
    )
    await services.settle(owner, name)
    fields = {"weight": wanted.weight, "guard": None if wanted.guard is None else wanted.guard.model_dump()}
    return _beside(adapter, alias, "adapter.canary", fields, etag)


@router.post("/canary/promote", summary="Point an alias at its canary")
async def promote_canary(request: Request, caller: Changing, if_match: IfMatch, owner: str, name: str, alias: str) -> JSONResponse:
    """Rolling back goes to the version that it was tried against."""
    services, by = services_of(request), caller.actor
    check_names(alias=alias)
    await services.warming.before_promotion(owner, name, alias)
    adapter, etag = await services.run(lambda: services.registry.canaries.promote(owner, name, alias, by=by, if_match=if_match))
    await services.settle(owner, name)
    return _beside(adapter, alias, "adapter.alias", {}, etag)


@router.delete("/canary", summary="End a canary: the alias's own version answers everybody")
async def abort_canary(request: Request, caller: Changing, if_match: IfMatch, owner: str, name: str, alias: str) -> JSONResponse:
    services, by = services_of(request), caller.actor
    check_names(alias=alias)
    etag = await services.run(lambda: services.registry.canaries.abort(owner, name, alias, by=by, if_match=if_match))
    await services.settle(owner, name)
    return JSONResponse({"id": f"{owner}/{name}:{alias}", "object": "adapter.canary", "deleted": True}, headers={"etag": quoted(etag)})


@router.put("/shadow", summary="Have some of the requests copied to another version", openapi_extra=json_body(StartShadow))
async def put_shadow(request: Request, caller: Changing, if_match: IfMatch, owner: str, name: str, alias: str) -> JSONResponse:
    """Its answers are counted, and seen by nobody. The same version again changes the share."""
    services, by = services_of(request), caller.actor
    wanted = await _parsed(request, StartShadow, '{"version": "<digest>", "share": 5}')
    check_names(alias=alias)
    await _check_served(services, owner, name, wanted.version)
    canaries = services.registry.canaries
    adapter, etag = await services.run(
        lambda: canaries.shadow(owner, name, alias, wanted.version, share=wanted.share, by=by, if_match=if_match)
    )
    await services.settle(owner, name)
    return _beside(adapter, alias, "adapter.shadow", {"share": wanted.share}, etag)


@router.delete("/shadow", summary="Copy no more requests of an alias")
async def end_shadow(request: Request, caller: Changing, if_match: IfMatch, owner: str, name: str, alias: str) -> JSONResponse:
    services, by = services_of(request), caller.actor
    check_names(alias=alias)
    etag = await services.run(lambda: services.registry.canaries.unshadow(owner, name, alias, by=by, if_match=if_match))
    await services.settle(owner, name)
    return JSONResponse({"id": f"{owner}/{name}:{alias}", "object": "adapter.shadow", "deleted": True}, headers={"etag": quoted(etag)})


async def _parsed(request: Request, body: type[Body], example: str) -> Body:
    try:
        return body.model_validate_json(await read_body(request, MAX_BODY_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or None
        raise InvalidRequest(f"{field or 'the body'} is not right ({first['msg'].lower()}): send e.g. {example}", param=field) from None


async def _check_served(services: Services, owner: str, name: str, version: str) -> None:
    """The version is of a base model that is served here; its existence is settled with it."""
    adapter = await services.run(lambda: services.registry.served(owner, name, check_version(version)))
    if adapter.base not in services.bases:
        raise InvalidRequest(f"{adapter.exact_name} is an adapter of {adapter.base}, which is not served here", param="version")


async def _canary_counted(services: Services, owner: str, name: str, canary: Canary) -> dict[str, Any]:
    counts = await services.run(lambda: services.trials.counted(owner, name, canary.trial))
    return {
        "version": canary.version,
        "weight": canary.weight,
        "guard": None if canary.guard is None else GuardBody.model_validate(canary.guard, from_attributes=True).model_dump(),
        "started_at": int(canary.started_at),
        "counts": _counts(counts, STABLE, CANARY),
    }


async def _shadow_counted(services: Services, owner: str, name: str, shadow: Shadow) -> dict[str, Any]:
    counts = await services.run(lambda: services.trials.counted(owner, name, shadow.trial))
    copied = counts.get(SHADOW, Tally())
    return {
        "version": shadow.version,
        "share": shadow.share,
        "started_at": int(shadow.started_at),
        "counts": _counts(counts, STABLE, SHADOW),
        "dropped": copied.dropped,
    }


def _counts(counts: Mapping[str, Tally], *sides: str) -> dict[str, Any]:
    tallies = {side: counts.get(side, Tally()) for side in sides}
    return {
        side: {
            "requests": tally.requests,
            "errors": tally.errors,
            "streams": tally.streams,
            "p95_ttft_seconds": None if (p95 := tally.p95_ttft_seconds()) is None else round(p95, 4),
        }
        for side, tally in tallies.items()
    }


def _beside(adapter: Adapter, alias: str, kind: str, fields: Mapping[str, Any], etag: str) -> JSONResponse:
    body = {"id": f"{adapter.adapter_name}:{alias}", "object": kind, "version": adapter.version, **fields}
    return JSONResponse(body, headers={"etag": quoted(etag)})
