"""A Hugging Face hub, for imports: what a repository holds, and its files. Each call runs `hub_process.py`, a process of its own.

huggingface_hub keeps its settings, sessions and caches per process, downloads in threads that cannot be stopped, and (with xet) takes
memory without a bound: in a process of its own it gets our address and token alone, and ends when its time is over.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapters_store.errors import InternalError, LorikeetError, NotFound, TooLarge, Unavailable
from configs.settings import ImportSettings

DEFAULT_URL = "https://huggingface.co"
LIST_SECONDS = 60.0  # the repository's list alone; a hub that is away is told sooner, by the connect timeout

_PROCESS = Path(__file__).with_name("hub_process.py")
_KEPT = ("PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY",
         "https_proxy", "http_proxy", "no_proxy")  # fmt: skip

logger = logging.getLogger(__name__)


class Hub:
    """Calls block. `max_bytes` bounds any file, whatever the hub said of its size."""

    def __init__(self, settings: ImportSettings, *, max_bytes: int) -> None:
        self._settings = settings
        self._max_bytes = max_bytes
        self._url = (settings.hub_url or os.environ.get("HF_ENDPOINT") or DEFAULT_URL).rstrip("/")

    def list(self, repository: str, revision: str | None) -> tuple[str, dict[str, int]]:
        """The commit that `revision` (None: the main branch) means now, and its files with their sizes in bytes.

        Raises NotFound, and Unavailable when the hub does not answer.
        """
        said = self._run({"do": "list", "repository": repository, "revision": revision}, LIST_SECONDS)
        return str(said["commit"]), {str(name): int(size_bytes) for name, size_bytes in said["sizes"].items()}

    def download(self, repository: str, commit: str, names: Sequence[str], into: Path) -> None:
        """Fetch files of a commit into `into`. Raises as `list` does, and TooLarge when one grows beyond what is taken."""
        ask = {"do": "download", "repository": repository, "revision": commit, "names": list(names), "into": str(into)}
        self._run({**ask, "max_bytes": self._max_bytes}, self._settings.timeout_seconds)

    def _run(self, ask: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        where = f"hf://{ask['repository']}"
        ask |= {"token": self._token(), "connect_timeout_seconds": self._settings.connect_timeout_seconds}
        with tempfile.TemporaryDirectory(prefix="hub-") as scratch:
            try:
                done = subprocess.run(  # noqa: S603 - our own file, and nothing of the request in its arguments
                    [sys.executable, "-P", str(_PROCESS), str(int(timeout_seconds) + 1)],
                    input=json.dumps(ask).encode(),
                    capture_output=True,
                    env=self._environment(scratch),
                    timeout=timeout_seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise Unavailable(f"{where} did not come within {timeout_seconds:g} s: {self._remedy()}", param="source") from None
        try:
            said: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            logger.warning("hub_process_failed", extra={"status": done.returncode, "said": done.stderr[-500:].decode(errors="replace")})
            raise InternalError("an import from the hub failed") from None
        if "failed" in said:
            logger.info("hub_failed", extra={"source": where, "kind": said["failed"], "error": said["error"]})
            raise self._error(said["failed"], said["error"], where, ask)
        return said

    def _error(self, kind: str, error: str, where: str, ask: dict[str, Any]) -> LorikeetError:
        if kind == "absent":
            hint = "" if ask["token"] else ", or it is private or gated, and needs imports.hub_token"
            return NotFound(f"{where} is not at {self._url}{hint}: check the name", param="source")
        if kind == "no_revision":
            return NotFound(f"{where} has no revision {ask['revision']!r}: give a branch, tag or commit", param="source")
        if kind == "too_large":
            return TooLarge(f"a file of {where} is larger than {self._max_bytes} bytes, the most that is taken", param="source")
        return Unavailable(f"{where}: the hub at {self._url} cannot be reached ({error}): {self._remedy()}", param="source")

    def _remedy(self) -> str:
        return "try again, check imports.hub_url and the network, or download it where the hub is and `lorikeet adapters push` it"

    def _environment(self, scratch: str) -> dict[str, str]:
        """What the process sees: neither our secrets nor what somebody logged in with on this machine."""
        ours = {
            "HF_ENDPOINT": self._url,
            "HF_HOME": scratch,
            "HOME": scratch,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        }
        return {name: value for name in _KEPT if (value := os.environ.get(name)) is not None} | ours

    def _token(self) -> str | None:
        """Read anew each time, so that a rotated token is taken without a restart."""
        kind, _, place = self._settings.hub_token.partition(":")
        if not kind:
            return None
        try:
            token = os.environ.get(place, "") if kind == "env" else Path(place).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            token = ""
        if not token.strip():
            raise Unavailable("imports.hub_token names a place that holds no token: the operator has to put it there", param="source")
        return token.strip()
