"""manifest.json: one version as it is written in the store. Owner and name are the key's, so a manifest can be copied with its folder."""

from __future__ import annotations

import json
from typing import Any

from adapters_store.adapter import Adapter, AdapterFile, version_of
from adapters_store.adapter_files import check_file_name
from adapters_store.errors import InternalError, InvalidRequest

FORMAT = 1


def write_manifest(adapter: Adapter) -> bytes:
    return json.dumps(manifest_body(adapter), indent=1).encode()


def manifest_body(adapter: Adapter) -> dict[str, Any]:
    """What a manifest says, as JSON has it."""
    return {
        "format": FORMAT,
        "version": adapter.version,
        "base": adapter.base,
        "rank": adapter.rank,
        "files": [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in adapter.files],
        "created_at": adapter.created_at,
        "created_by": adapter.created_by,
    }


def read_manifest(data: bytes, owner: str, name: str, version: str) -> Adapter:
    """The version that `data` describes.

    It comes from a bucket that others may write to: file names become paths on nodes, so they are checked, and so is the digest.

    Raises:
        InternalError: the manifest is damaged, or belongs to another version.
    """
    try:
        body = json.loads(data)
    except ValueError:
        raise _damaged(owner, name, version) from None
    return adapter_of(body, owner, name, version)


def adapter_of(body: Any, owner: str, name: str, version: str) -> Adapter:
    """The version that a `manifest_body` describes. Raises as `read_manifest`."""
    try:
        files = tuple(
            AdapterFile(check_file_name(str(file["name"])), int(file["size_bytes"]), str(file["sha256"])) for file in body["files"]
        )
        adapter = Adapter(
            owner, name, version, str(body["base"]), int(body["rank"]), files, float(body["created_at"]), str(body["created_by"])
        )
    except (ValueError, TypeError, KeyError, InvalidRequest):
        raise _damaged(owner, name, version) from None
    if version_of(files) != version:
        raise _damaged(owner, name, version)
    return adapter


def _damaged(owner: str, name: str, version: str) -> InternalError:
    return InternalError(f"the manifest of {owner}/{name}@{version} is damaged: publish the adapter again under another name")
