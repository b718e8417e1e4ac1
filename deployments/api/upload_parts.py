"""Resumable uploads over HTTP: announce the files, send what is missing in parts, commit.

    POST …/uploads {files: name, size_bytes, sha256}  ──▶  id, part_bytes, and of each file the parts that are missing
    PUT  …/uploads/{id}/files/{file}/parts/{n}        ──▶  kept in the store; in any order, again, or through another gateway
    POST …/uploads/{id}/commit                        ──▶  put together, verified, and published as the one-shot upload is

After a broken connection the client announces the same files again (it is the same upload) and sends what is still missing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters_store.adapter import AdapterFile
from adapters_store.errors import InvalidAdapter, InvalidRequest, NotFound, Overloaded, TooSlow
from adapters_store.registry import Published
from adapters_store.upload_assembly import FileProgress
from adapters_store.upload_session import UploadSession
from deployments.api.body import check_declared_length, read_body
from deployments.api.caller import Changing
from deployments.api.labels import UploadLabels
from deployments.api.openapi import json_body
from deployments.api.publish import UploadAlias, Wanted, as_published, publish_folder, publish_known, published_response
from deployments.api.services import Services, services_of
from deployments.api.spool import Spool, receive_whole
from deployments.api.uploads import staging_folder

PART_SECONDS = 600.0  # one part may take this long: a client that trickles must not keep its place
MAX_ANNOUNCEMENT_BYTES = 256 << 10

_UPLOADS = "/{owner}/{name}/uploads"
_UPLOAD = _UPLOADS + "/{upload}"

router = APIRouter(tags=["adapters"], prefix="/adapters")


class AnnouncedFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=128)
    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the whole file, in lower-case hex")


class BeginUpload(BaseModel):
    """The body of POST …/uploads."""

    model_config = ConfigDict(extra="forbid")

    files: list[AnnouncedFile] = Field(min_length=1)


@router.post(
    _UPLOADS,
    status_code=201,
    summary="Begin a resumable upload, or go on with one: say what is to be sent, hear what is missing",
    openapi_extra=json_body(BeginUpload),
)
async def begin_upload(request: Request, caller: Changing, owner: str, name: str) -> JSONResponse:
    """201 when it is new, 200 when this key has announced the same files before and they are not published yet."""
    services = services_of(request)
    try:
        wanted = BeginUpload.model_validate_json(await read_body(request, MAX_ANNOUNCEMENT_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(
            f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}. Send "
            '{"files": [{"name": "adapter_config.json", "size_bytes": 742, "sha256": "<64 hex digits>"}, ...]}',
            param="files",
        ) from None
    files = [AdapterFile(file.name, file.size_bytes, file.sha256) for file in wanted.files]

    def begin() -> tuple[UploadSession, bool, tuple[FileProgress, ...]]:
        services.resumable.sweep_if_due()
        session, created = services.resumable.sessions.begin(caller.id, owner, name, files)
        return session, created, services.resumable.assembly.progress(session)

    session, created, progress = await services.run(begin)
    return JSONResponse(_shown(session, progress), 201 if created else 200, {"location": f"{request.url.path}/{session.id}"})


@router.get(_UPLOAD, summary="What has arrived of a resumable upload, and what is missing")
async def describe_upload(request: Request, caller: Changing, owner: str, name: str, upload: str) -> dict[str, Any]:
    services = services_of(request)

    def look() -> dict[str, Any]:
        session = services.resumable.sessions.find(caller.id, owner, name, upload)
        return _shown(session, services.resumable.assembly.progress(session))

    return await services.run(look)


@router.put(_UPLOAD + "/files/{file}/parts/{part}", status_code=204, summary="Send a part of a file; the body is the part")
async def put_part(request: Request, caller: Changing, owner: str, name: str, upload: str, file: str, part: int) -> Response:
    """Part n holds the bytes from n * part_bytes on, `part_bytes` of them; the last one what is left. 204 when it is kept."""
    services = services_of(request)
    sessions = services.resumable.sessions
    session = await services.run(lambda: sessions.find(caller.id, owner, name, upload))
    number = session.file_number(file)
    size_bytes = session.part_size_bytes(number, part)
    check_declared_length(request, size_bytes)
    async with _place(services.resumable.parts_at_once), staging_folder(services.uploads, services.threads) as folder:
        try:
            async with asyncio.timeout(PART_SECONDS):
                received = await _receive(request, folder, services, size_bytes)
        except TimeoutError:
            raise TooSlow(f"the part did not come whole within {PART_SECONDS:g} s: send it again") from None
        await services.run(lambda: sessions.add_part(session, number, part, received))
    return Response(status_code=204)


@router.post(_UPLOAD + "/commit", status_code=201, summary="Validate and publish what a resumable upload has sent")
async def commit_upload(
    request: Request, caller: Changing, labels: UploadLabels, owner: str, name: str, upload: str, alias: UploadAlias
) -> JSONResponse:
    """Answers as the one-shot upload does, and so when it is repeated. 409 while parts are missing, or a file is not what was announced."""
    services = services_of(request)
    resumable = services.resumable
    try:
        session = await services.run(lambda: resumable.sessions.find(caller.id, owner, name, upload))
    except NotFound:
        version = await services.run(lambda: resumable.sessions.finished(caller.id, upload))
        if version is None:
            raise
        return published_response(await _as_before(services, owner, name, version, alias))
    wanted = Wanted(owner, name, caller.actor, labels, alias)
    return published_response(await resumable.commit(upload, lambda: _publish(services, session, wanted)))


@router.delete(_UPLOAD, summary="Cancel a resumable upload")
async def cancel_upload(request: Request, caller: Changing, owner: str, name: str, upload: str) -> dict[str, Any]:
    services = services_of(request)
    sessions = services.resumable.sessions
    await services.run(lambda: sessions.cancel(sessions.find(caller.id, owner, name, upload)))
    return {"id": upload, "object": "adapter.upload", "deleted": True}


@contextlib.asynccontextmanager
async def _place(places: asyncio.Semaphore) -> AsyncIterator[None]:
    if places.locked():
        raise Overloaded("this gateway takes as many uploads as it may: try again shortly", retry_after_seconds=1.0)
    async with places:
        yield


async def _receive(request: Request, folder: Path, services: Services, size_bytes: int) -> Path:
    """The body as a file of just `size_bytes`. Raises InvalidRequest for less, TooLarge for more."""
    with Spool(folder, services.threads, max_bytes=size_bytes, max_files=1) as spool:
        spool.open("part")
        await receive_whole(request, spool)
    received = folder / "part"
    if (came := (await services.run(received.stat)).st_size) != size_bytes:
        raise InvalidRequest(f"the part has {came} bytes, and should have {size_bytes}: send it whole", param="part")
    return received


async def _publish(services: Services, session: UploadSession, wanted: Wanted) -> Published:
    sessions = services.resumable.sessions
    try:
        published = await publish_known(services, session.version, wanted)
        if published is None:
            published = await _assemble_and_publish(services, session, wanted)
    except InvalidAdapter:  # what it is has been found out, and a repeated commit is told the same
        await services.run(lambda: sessions.finish(session))
        raise
    await services.run(lambda: sessions.finish(session))
    return published


async def _as_before(services: Services, owner: str, name: str, version: str, alias: str) -> Published:
    """What a commit that has ended answers again, by what its version is now. Raises InvalidAdapter when it was rejected."""
    found = await services.run(lambda: services.registry.admissions.of(owner, name, version))
    if found.adapter is None:
        raise InvalidAdapter(found.reasons, param="files")
    return as_published(found, Published(found.adapter, created=False, alias_moved=False), alias)


async def _assemble_and_publish(services: Services, session: UploadSession, wanted: Wanted) -> Published:
    resumable = services.resumable
    async with _place(services.uploads_at_once), staging_folder(services.uploads, services.threads) as folder:
        files = folder / "assembled"

        def assemble() -> None:
            files.mkdir()
            resumable.assembly.assemble(session, files)

        await services.run(assemble)
        try:
            return await publish_folder(services, files, wanted)
        except InvalidAdapter:
            raise
        except InvalidRequest:
            await services.run(lambda: resumable.sessions.cancel(session))  # it will not become fit: nothing of it is kept
            raise


def _shown(session: UploadSession, progress: tuple[FileProgress, ...]) -> dict[str, Any]:
    return {
        "id": session.id,
        "object": "adapter.upload",
        "adapter": f"{session.owner}/{session.name}",
        "version": session.version,
        "part_bytes": session.part_bytes,
        "expires_at": int(session.expires_at),
        "files": [
            {
                "name": item.file.name,
                "size_bytes": item.file.size_bytes,
                "sha256": item.file.sha256,
                "stored": item.stored,
                "missing": list(item.missing),
            }
            for item in progress
        ],
    }
