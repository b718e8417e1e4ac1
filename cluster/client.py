"""A small typed client of Lorikeet's HTTP API, for the command line and for publishing the demo adapters.

Synchronous, one connection pool. Uploads are sent in parts (`push.py`), so an adapter of any size takes little memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from cluster.api_error import ApiError as ApiError
from cluster.push import Push
from cluster.push import Pushed as Pushed
from cluster.trying import Trying, condition

IMPORT_TIMEOUT = httpx.Timeout(1800.0, connect=10.0)  # the server bounds it; this is for a server that is gone


@dataclass(frozen=True, slots=True)
class AdapterRow:
    """One adapter of a listing; `version` is what its name means now."""

    id: str  # owner/name
    base: str
    rank: int
    version: str | None
    tags: Mapping[str, str] = field(default_factory=dict)
    private: bool = False


class Client(Trying):
    """Talks to one server with one key. Every method raises ApiError. Canaries and shadows are in `trying.py`."""

    def __init__(self, base_url: str, api_key: str | None, *, timeout_seconds: float = 600.0) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/api/v1").removesuffix("/v1")
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_seconds, connect=10.0),
            trust_env=False,  # a proxy for the internet must not get requests to this machine
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def push(
        self,
        folder: Path | str,
        owner: str,
        name: str,
        progress: Callable[[int, int], None] | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        private: bool | None = None,
        alias: str | None = None,
    ) -> Pushed:
        """Upload a PEFT folder as a new version of owner/name; its name is served when this returns.

        With another `alias` than production that one is pointed at it, and what owner/name means stays.

        Goes on by itself after a broken connection, and where an earlier push was stopped; content that is there is not sent.
        `progress` gets (bytes that are there, all bytes). `tags` are added to those that owner/name has; `private` None leaves
        its visibility as it is.
        """
        return Push(self._send, Path(folder), owner, name, progress, labels=_labels(tags, private, alias)).run()

    def import_version(
        self,
        source: str,
        owner: str,
        name: str,
        *,
        tags: Mapping[str, str] | None = None,
        private: bool | None = None,
        alias: str | None = None,
    ) -> Pushed:
        """Have the server fetch `s3://bucket/path` or `hf://owner/name[@revision]` as a new version of owner/name."""
        path, query = f"/api/v1/adapters/{owner}/{name}/versions", _labels(tags, private, alias)
        return Pushed.read(self._send("POST", path, json={"source": source}, params=query, timeout=IMPORT_TIMEOUT))

    def list_adapters(
        self, *, owner: str | None = None, base: str | None = None, tags: Mapping[str, str] | None = None, page: int = 100
    ) -> Iterator[AdapterRow]:
        """Every adapter that the key may see, has this base and all of these tags, page by page, in the order of their names."""
        asked = {"owner": owner, "base": base, "limit": str(page), "tag": [f"{key}={value}" for key, value in (tags or {}).items()]}
        query = {name: value for name, value in asked.items() if value}
        while True:
            answer = self._send("GET", "/api/v1/adapters", params=query).json()
            for row in answer["data"]:
                private = row.get("visibility") == "private"
                yield AdapterRow(row["id"], row["base"], row["rank"], row.get("version"), row.get("tags", {}), private)
            if not answer.get("has_more") or not answer.get("next"):
                return
            query["after"] = answer["next"]

    def show(self, owner: str, name: str) -> dict[str, Any]:
        """One adapter's versions and aliases, as the API gives them; its `etag` is the `if_match` of what changes them."""
        return dict(self._send("GET", f"/api/v1/adapters/{owner}/{name}").json())

    def change_labels(
        self, owner: str, name: str, *, tags: Mapping[str, str | None] | None = None, private: bool | None = None
    ) -> dict[str, Any]:
        """Set tags (None takes one off) and visibility; what the adapter has now."""
        visibility = {} if private is None else {"visibility": "private" if private else "public"}
        return dict(self._send("PATCH", f"/api/v1/adapters/{owner}/{name}", json={"tags": dict(tags or {}), **visibility}).json())

    def version(self, owner: str, name: str, version: str) -> dict[str, Any]:
        """One version (or a unique prefix of it): whether it is ready, pending or rejected, and every reason why."""
        body: dict[str, Any] = self._send("GET", f"/api/v1/adapters/{owner}/{name}/versions/{version}").json()
        return body

    def move_alias(self, owner: str, name: str, alias: str, version: str, *, if_match: str | None = None) -> str:
        """Point an alias at a version (or a unique prefix of it); the version. With `if_match` only over that etag of `show`."""
        path = f"/api/v1/adapters/{owner}/{name}/aliases/{alias}"
        return str(self._send("PUT", path, json={"version": version}, headers=condition(if_match)).json()["version"])

    def roll_back(self, owner: str, name: str, alias: str = "production", *, if_match: str | None = None) -> str:
        """Point an alias back at the version that it had before; that version."""
        path = f"/api/v1/adapters/{owner}/{name}/aliases/{alias}/rollback"
        return str(self._send("POST", path, headers=condition(if_match)).json()["version"])

    def delete_alias(self, owner: str, name: str, alias: str, *, if_match: str | None = None) -> None:
        """Forget an alias; the versions stay."""
        self._send("DELETE", f"/api/v1/adapters/{owner}/{name}/aliases/{alias}", headers=condition(if_match))

    def warm(self, owner: str, name: str, version: str, *, replicas: int = 1) -> dict[str, Any]:
        """Have a version (or what it is a unique prefix of) loaded where it will be asked for: on how many replicas it is, and where it was
        found, as the API gives it."""
        path = f"/api/v1/adapters/{owner}/{name}/versions/{version}/warm"
        return dict(self._send("POST", path, params={"replicas": str(replicas)}).json())

    def delete(self, owner: str, name: str, version: str | None = None) -> None:
        """Retire an adapter, or one version of it: unknown to new requests when this returns."""
        part = f"/versions/{version}" if version else ""
        self._send("DELETE", f"/api/v1/adapters/{owner}/{name}{part}")

    def undelete(self, owner: str, name: str, version: str | None = None) -> None:
        """Give back what `delete` took, while its files are there."""
        part = f"/versions/{version}" if version else ""
        self._send("POST", f"/api/v1/adapters/{owner}/{name}{part}/undelete")

    def history(self, owner: str, name: str, *, alias: str | None = None) -> list[dict[str, Any]]:
        """What moved the aliases of an adapter, newest first, as the API gives it."""
        query = {"limit": "200", **({"alias": alias} if alias else {})}
        return list(self._send("GET", f"/api/v1/adapters/{owner}/{name}/history", params=query).json()["data"])

    def models(self) -> Iterator[str]:
        """The names that `chat` takes, page by page."""
        query: dict[str, str] = {}
        while True:
            answer = self._send("GET", "/api/v1/models", params=query).json()
            yield from (row["id"] for row in answer["data"])
            if not answer.get("has_more") or not answer["data"]:
                return
            query = {"after": answer["data"][-1]["id"]}

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether a request would be answered, and what /readyz says of it."""
        try:
            response = self._http.get("/readyz", timeout=10.0)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        body = _json(response)
        return response.status_code == httpx.codes.OK, body if isinstance(body, dict) else {}

    def chat(self, model: str, messages: Sequence[dict[str, str]], **options: Any) -> Iterator[str]:
        """Stream one chat's answer, piece by piece. `options` are further fields of the request, e.g. temperature."""
        body = {"model": model, "messages": list(messages), "stream": True, **options}
        try:
            with self._http.stream("POST", "/api/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                yield from _pieces(response)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.is_error:
            raise _refusal(response)
        return response

    def _unreachable(self, error: httpx.HTTPError) -> ApiError:
        return ApiError(0, f"no answer from {self.base_url} ({type(error).__name__}): is it up? See `lorikeet status`")


def _labels(tags: Mapping[str, str] | None, private: bool | None, alias: str | None) -> dict[str, Any]:
    """Tags, visibility and alias as parameters of an upload's URL."""
    visibility = {} if private is None else {"visibility": "private" if private else "public"}
    pointed = {} if alias is None else {"alias": alias}
    return {"tag": [f"{key}={value}" for key, value in (tags or {}).items()], **visibility, **pointed}


def _pieces(response: httpx.Response) -> Iterator[str]:
    """The text of each chunk of a server-sent event stream, up to `[DONE]`."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise ApiError(response.status_code, str(chunk["error"].get("message")), code=chunk["error"].get("code"))
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                yield text
    raise ApiError(response.status_code, "the answer broke off: the server closed the stream before [DONE]; ask again")


def _refusal(response: httpx.Response) -> ApiError:
    body = _json(response)
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return ApiError(response.status_code, f"the server answered {response.status_code} {response.reason_phrase}")
    wait = response.headers.get("retry-after", "")
    return ApiError(
        response.status_code,
        str(error.get("message")),
        code=error.get("code"),
        param=error.get("param"),
        retry_after_seconds=float(wait) if wait.isdigit() else 0.0,
    )


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
