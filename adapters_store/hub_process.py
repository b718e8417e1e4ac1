"""The process that speaks to a hub, for `hub.py`: a question as JSON on standard input, an answer as JSON on standard output.

Its only argument is the seconds after which it ends itself, should its parent be gone by then. Imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import errno
import json
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    signal.alarm(int(sys.argv[1]))
    ask: dict[str, Any] = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is the answer's
        said = _answer(ask)
    json.dump(said, sys.stdout)


def _answer(ask: dict[str, Any]) -> dict[str, Any]:
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return _list(ask) if ask["do"] == "list" else _download(ask)
    except RepositoryNotFoundError as error:  # private and gated ones, too
        return {"failed": "absent", "error": type(error).__name__}
    except RevisionNotFoundError as error:
        return {"failed": "no_revision", "error": type(error).__name__}
    except HfHubHTTPError as error:
        status = error.response.status_code
        return {"failed": "absent" if status in (401, 403, 404) else "away", "error": f"it answered {status}"}
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            return {"failed": "too_large", "error": "EFBIG"}
        return {"failed": "away", "error": type(error).__name__}  # only the kind: a message may hold a signed address


def _list(ask: dict[str, Any]) -> dict[str, Any]:
    from huggingface_hub import HfApi

    info = HfApi(token=ask["token"] or False).model_info(
        ask["repository"], revision=ask["revision"], files_metadata=True, timeout=ask["connect_timeout_seconds"]
    )
    return {"commit": info.sha, "sizes": {file.rfilename: file.size for file in info.siblings or [] if file.size is not None}}


def _download(ask: dict[str, Any]) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    resource.setrlimit(resource.RLIMIT_FSIZE, (ask["max_bytes"], ask["max_bytes"]))  # a hub that told a smaller size is stopped
    into = Path(ask["into"])
    for name in ask["names"]:
        hf_hub_download(
            ask["repository"],
            name,
            revision=ask["revision"],
            local_dir=into,
            token=ask["token"] or False,
            etag_timeout=ask["connect_timeout_seconds"],
        )
    shutil.rmtree(into / ".cache", ignore_errors=True)  # its notes on what it downloaded
    return {"done": True}


if __name__ == "__main__":
    main()
