"""The client's calls that try a version beside what an alias serves: canaries and shadows. A part of `client.py`."""

from __future__ import annotations

from typing import Any

import httpx


class Trying:
    """Every method raises ApiError."""

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        raise NotImplementedError

    def alias(self, owner: str, name: str, alias: str = "production") -> dict[str, Any]:
        """What an alias serves, what stands beside it, and what was counted of that, as the API gives it."""
        return dict(self._send("GET", _path(owner, name, alias)).json())

    def set_canary(
        self,
        owner: str,
        name: str,
        version: str,
        weight: float,
        *,
        alias: str = "production",
        requests: int | None = None,
        error_points: float | None = None,
        ttft_ratio: float | None = None,
        guarded: bool = True,
        if_match: str | None = None,
    ) -> dict[str, Any]:
        """Have `version` answer `weight` percent of an alias's people; the canary.

        The guard ends it when, over so many `requests` of it, its error rate is `error_points` above the alias's own version's, or its
        p95 TTFT `ttft_ratio` times that; what is not given is the server's default. Call it again for another weight.
        """
        given = {"requests": requests, "error_points": error_points, "ttft_ratio": ttft_ratio}
        guard = {key: value for key, value in given.items() if value is not None} if guarded else None
        body = {"version": version, "weight": weight, "guard": guard}
        return dict(self._send("PUT", f"{_path(owner, name, alias)}/canary", json=body, headers=condition(if_match)).json())

    def promote_canary(self, owner: str, name: str, alias: str = "production", *, if_match: str | None = None) -> str:
        """Point an alias at its canary; the version."""
        return str(self._send("POST", f"{_path(owner, name, alias)}/canary/promote", headers=condition(if_match)).json()["version"])

    def abort_canary(self, owner: str, name: str, alias: str = "production", *, if_match: str | None = None) -> None:
        """End a canary: the alias's own version answers everybody."""
        self._send("DELETE", f"{_path(owner, name, alias)}/canary", headers=condition(if_match))

    def set_shadow(
        self, owner: str, name: str, version: str, share: float, *, alias: str = "production", if_match: str | None = None
    ) -> dict[str, Any]:
        """Have `share` percent of an alias's requests copied to `version`; the shadow."""
        body = {"version": version, "share": share}
        return dict(self._send("PUT", f"{_path(owner, name, alias)}/shadow", json=body, headers=condition(if_match)).json())

    def end_shadow(self, owner: str, name: str, alias: str = "production", *, if_match: str | None = None) -> None:
        """Copy no more requests of an alias."""
        self._send("DELETE", f"{_path(owner, name, alias)}/shadow", headers=condition(if_match))


def condition(if_match: str | None) -> dict[str, str]:
    """The header that makes a change only over this etag."""
    return {"If-Match": f'"{if_match}"'} if if_match is not None else {}


def _path(owner: str, name: str, alias: str) -> str:
    return f"/api/v1/adapters/{owner}/{name}/aliases/{alias}"
