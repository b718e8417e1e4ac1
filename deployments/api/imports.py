"""The JSON form of POST …/versions: the adapter is fetched from where it lies, not sent."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters_store.errors import InvalidRequest
from deployments.api.body import read_body
from deployments.api.services import Services

MAX_BODY_BYTES = 16 << 10


class ImportVersion(BaseModel):
    """The JSON body of POST …/versions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source: str = Field(max_length=1200, description="s3://bucket/path or hf://owner/name[@revision]")


def is_import(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


async def fetch_adapter(request: Request, folder: Path, services: Services) -> Path:
    """Fetch what the request's JSON names into `folder`; returns the folder that holds the adapter's files."""
    try:
        wanted = ImportVersion.model_validate_json(await read_body(request, MAX_BODY_BYTES))
    except ValidationError:
        raise InvalidRequest(
            'the body is not {"source": "s3://bucket/path"} or {"source": "hf://owner/name[@revision]"}: name one source', param="source"
        ) from None
    received = folder / "received"

    def fetch() -> None:
        received.mkdir()
        services.imports.fetch(wanted.source, received)

    await services.run(fetch)
    return received
