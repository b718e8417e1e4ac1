"""Tags and visibility of an adapter: as an upload or a search names them, and the route that changes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters_store.errors import InvalidRequest
from adapters_store.labels import MAX_TAGS, LabelChange
from deployments.api.body import read_body
from deployments.api.caller import Changing
from deployments.api.etags import IfMatch, quoted
from deployments.api.services import services_of

router = APIRouter(tags=["adapters"], prefix="/adapters")

MAX_BODY_BYTES = 16 << 10

Visibility = Literal["public", "private"]


class ChangeLabels(BaseModel):
    """The body of PATCH /adapters/{owner}/{name}: what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    tags: dict[str, str | None] = Field(default_factory=dict, description="tags to set; null takes one off")
    visibility: Visibility | None = Field(None, description="`private`: only the owner may see and ask it")


def tag_pairs(tag: Annotated[list[str] | None, Query(description="`key=value`; may be given more than once")] = None) -> dict[str, str]:
    """The `tag` parameters of a URL. Raises InvalidRequest."""
    pairs: dict[str, str] = {}
    for text in tag or ():
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise InvalidRequest(f"tag is {text[:120]!r}: give it as key=value", param="tag")
        if pairs.setdefault(key, value) != value:
            raise InvalidRequest(f"tag {key[:60]!r} is given two values: an adapter has one of each", param="tag")
    if len(pairs) > MAX_TAGS:
        raise InvalidRequest(f"{len(pairs)} tags are given, at most {MAX_TAGS} are taken", param="tag")
    return pairs


TagPairs = Annotated[dict[str, str], Depends(tag_pairs)]


def _upload_labels(tags: TagPairs, visibility: Visibility | None = None) -> LabelChange:
    change = LabelChange(dict(tags), _private(visibility))
    change.tags_after({})  # refused before gigabytes have come
    return change


UploadLabels = Annotated[LabelChange, Depends(_upload_labels)]


@router.patch("/{owner}/{name}", summary="Change an adapter's tags and visibility")
async def change_labels(request: Request, caller: Changing, if_match: IfMatch, owner: str, name: str) -> JSONResponse:
    """When this returns, no gateway lets those ask who may not."""
    services = services_of(request)
    try:
        wanted = ChangeLabels.model_validate_json(await read_body(request, MAX_BODY_BYTES))
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"])) or "the body"
        raise InvalidRequest(
            f'{field} is not right: send {{"tags": {{"key": "value", "other": null}}, "visibility": "public" or "private"}}', param=field
        ) from None
    change = LabelChange(wanted.tags, _private(wanted.visibility))
    etag = await services.run(lambda: services.registry.label(owner, name, change, if_match=if_match))
    await services.settle(owner, name)
    detail = await services.run(lambda: services.registry.describe(owner, name))
    body = {"id": f"{owner}/{name}", "object": "adapter", **label_fields(dict(detail.tags), detail.private)}
    return JSONResponse(body, headers={"etag": quoted(etag)})


def label_fields(tags: dict[str, str], private: bool) -> dict[str, Any]:
    """Labels as every answer shows them."""
    return {"tags": tags, "visibility": "private" if private else "public"}


def _private(visibility: Visibility | None) -> bool | None:
    return None if visibility is None else visibility == "private"
