"""A Hugging Face hub for tests, in a process of its own: the few routes that huggingface_hub calls for a model repository.

    with hub(folder) as url:  # folder/<owner>/<name>/<file> are the repositories, all at one commit

`private/…` asks for the token TOKEN. A file whose name begins with `growing` is longer than the hub says.
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from tests.s3 import free_port

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_the_token_of_the_tests"
REVISIONS = {"main", "v1", COMMIT}
START_TIMEOUT_SECONDS = 60.0


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "tests.hub", str(folder), str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < deadline, "the hub did not start"
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(url, timeout=1.0, trust_env=False)
                break
            time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait(10)


def _app(folder: Path) -> Starlette:
    def refusal(request: Request) -> Response | None:
        owner, name = request.path_params["owner"], request.path_params["name"]
        allowed = owner != "private" or request.headers.get("authorization") == f"Bearer {TOKEN}"
        if not allowed or not (folder / owner / name).is_dir():
            return Response(status_code=401, headers={"x-error-code": "RepoNotFound", "x-error-message": "Repository not found"})
        if request.path_params.get("revision", "main") not in REVISIONS:
            return Response(status_code=404, headers={"x-error-code": "RevisionNotFound"})
        return None

    def model(request: Request) -> Response:
        if (refused := refusal(request)) is not None:
            return refused
        owner, name = request.path_params["owner"], request.path_params["name"]
        if owner == "slow":
            time.sleep(30)
        repository = folder / owner / name
        files = [path for path in sorted(repository.rglob("*")) if path.is_file()]
        siblings = [
            {"rfilename": str(path.relative_to(repository)), "size": 1 if path.name.startswith("growing") else path.stat().st_size}
            for path in files
        ]
        return JSONResponse({"_id": "1", "id": f"{owner}/{name}", "modelId": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings})

    def resolve(request: Request) -> Response:
        if (refused := refusal(request)) is not None:
            return refused
        path = folder / request.path_params["owner"] / request.path_params["name"] / request.path_params["file"]
        if not path.is_file():
            return Response(status_code=404, headers={"x-error-code": "EntryNotFound"})
        etag = hashlib.sha256(path.read_bytes()).hexdigest()
        return FileResponse(path, headers={"x-repo-commit": COMMIT, "etag": f'"{etag}"'})

    repository = "/{owner}/{name}"
    return Starlette(
        routes=[
            Route(f"/api/models{repository}", model),
            Route(f"/api/models{repository}/revision/{{revision}}", model),
            Route(f"{repository}/resolve/{{revision}}/{{file:path}}", resolve),
        ]
    )


if __name__ == "__main__":
    uvicorn.run(_app(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
