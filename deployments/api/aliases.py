"""The routes of an adapter's aliases: move, roll back, delete, and what moved them so far.

A change begins when what it leads to is warm (`warming.py`), and returns when its lease is over: from then on no gateway answers a new
request from what was before.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters_store.adapter import Adapter
from adapters_store.errors import InvalidRequest
from adapters_store.history import HISTORY_KEPT, AliasMove
from deployments.api.body import read_body
from deployments.api.caller import Changing, Seeing
from deployments.api.etags import IfMatch, quoted
from deployments.api.names import check_names
from deployments.api.services import services_of

router = APIRouter(tags=["aliases"], prefix="/adapters/{owner}/{name}")

MAX_BODY_BYTES = 16 << 10


class MoveAlias(BaseModel):
    """The body of PUT …/aliases/{alias}."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(description="the version to point at: its digest, or a unique prefix of at least 8 digits")


@router.put("/aliases/{alias}", summary="Point an alias at a version")
async def move_alias(request: Request, caller: Changing, if_match: IfMatch, owner: str, name: str, alias: str) -> JSONResponse:
    """With If-Match only if nobody moved an alias since that etag was read."""
    services = services_of(request)
    check_names(alias=alias)
    try:
        wanted = MoveAlias.model_validate_json(await read_body(request, MAX_BODY_BYTES))
    except ValidationError:
        raise InvalidRequest('the body is not {"version": "<digest>"}: name the version to point at', param="version") from None
    aliases, by = services.registry.aliases, caller.actor
    await services.warming.before_move(owner, name, alias, wanted.version)
    adapter, etag = await services.run(lambda: aliases.move(owner, name, alias, wanted.version, by=by, if_match=if_match))
    await services.settle(owner, name)
    return _pointing(adapter, alias, etag)


@router.post("/aliases/{alias}/rollback", summary="Point an alias back at the version that it had before")
async def roll_back_alias(request: Request, caller: Changing, if_match: IfMatch, owner: str, name: str, alias: str) -> JSONResponse:
    """Twice goes back two versions; send If-Match so that a call that is sent again does nothing."""
    services = services_of(request)
    check_names(alias=alias)
    aliases, by = services.registry.aliases, caller.actor
    await services.warming.before_rollback(owner, name, alias)
    adapter, etag = await services.run(lambda: aliases.roll_back(owner, name, alias, by=by, if_match=if_match))
    await services.settle(owner, name)
    return _pointing(adapter, alias, etag)


@router.delete("/aliases/{alias}", summary="Delete an alias; the versions stay")
async def delete_alias(request: Request, caller: Changing, if_match: IfMatch, owner: str, name: str, alias: str) -> JSONResponse:
    services = services_of(request)
    check_names(alias=alias)
    aliases, by = services.registry.aliases, caller.actor
    etag = await services.run(lambda: aliases.delete(owner, name, alias, by=by, if_match=if_match))
    await services.settle(owner, name)
    return JSONResponse({"id": f"{owner}/{name}:{alias}", "object": "adapter.alias", "deleted": True}, headers={"etag": quoted(etag)})


@router.get("/history", summary="What moved an adapter's aliases, newest first")
async def get_history(
    request: Request,
    caller: Seeing,
    owner: str,
    name: str,
    alias: str | None = None,
    limit: int = Query(HISTORY_KEPT, ge=1, le=2 * HISTORY_KEPT),
) -> dict[str, Any]:
    """The newest hundred moves are kept, and the last of every alias."""
    services = services_of(request)
    if alias is not None:
        check_names(alias=alias)
    moves = await services.run(lambda: services.registry.aliases.history(owner, name))
    asked = [move for move in moves if alias is None or move.alias == alias]
    return {"object": "list", "data": [_move(move, caller.owns(owner)) for move in asked[:limit]], "has_more": len(asked) > limit}


def _pointing(adapter: Adapter, alias: str, etag: str) -> JSONResponse:
    body = {"id": f"{adapter.adapter_name}:{alias}", "object": "adapter.alias", "version": adapter.version}
    return JSONResponse(body, headers={"etag": quoted(etag)})


def _move(move: AliasMove, is_own: bool) -> dict[str, Any]:
    """Other tenants see what happened, and not which of the owner's keys did it."""
    by = {"key": move.by.key_id, "name": move.by.name} if is_own else {"key": None, "name": None}
    return {
        "object": "adapter.move",
        "at": int(move.at),
        "by": {**by, "tenant": move.by.tenant},
        "why": move.why,
        "alias": move.alias,
        "from": move.before,
        "to": move.after,
        "note": move.note,
    }
