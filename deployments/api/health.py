"""GET /healthz, /readyz and /metrics: for load balancers, operators and Prometheus. No key is needed; nothing private is told."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from deployments.api.services import services_of

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="The process lives")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="A request would be answered; 503 says what is missing")
async def readyz(request: Request) -> JSONResponse:
    models = dict(await services_of(request).readiness())
    ready = all(state in ("ready", "asleep") for state in models.values())
    body = {"status": "ready" if ready else "not ready", "models": models}
    return JSONResponse(body, 200 if ready else 503, None if ready else {"retry-after": "2"})


@router.get("/metrics", summary="Counters of this gateway, for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    return Response(services_of(request).metrics.page(), media_type="text/plain; version=0.0.4")
