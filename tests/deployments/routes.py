"""Every route there is, by path: what /docs must name, and nothing else."""

from __future__ import annotations

ROUTES = {
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
    "/api/v1/chat/completions": {"post"},
    "/api/v1/models": {"get"},
    "/api/v1/models/{name}": {"get"},
    "/api/v1/adapters": {"get"},
    "/api/v1/adapters/{owner}/{name}": {"get", "delete", "patch"},
    "/api/v1/adapters/{owner}/{name}/history": {"get"},
    "/api/v1/adapters/{owner}/{name}/versions": {"post"},
    "/api/v1/adapters/{owner}/{name}/versions/{version}": {"get", "delete"},
    "/api/v1/adapters/{owner}/{name}/uploads": {"post"},
    "/api/v1/adapters/{owner}/{name}/uploads/{upload}": {"get", "delete"},
    "/api/v1/adapters/{owner}/{name}/uploads/{upload}/files/{file}/parts/{part}": {"put"},
    "/api/v1/adapters/{owner}/{name}/uploads/{upload}/commit": {"post"},
    "/api/v1/adapters/{owner}/{name}/versions/{version}/undelete": {"post"},
    "/api/v1/adapters/{owner}/{name}/versions/{version}/warm": {"post"},
    "/api/v1/adapters/{owner}/{name}/undelete": {"post"},
    "/api/v1/adapters/{owner}/{name}/aliases/{alias}": {"put", "delete", "get"},
    "/api/v1/adapters/{owner}/{name}/aliases/{alias}/canary": {"put", "delete"},
    "/api/v1/adapters/{owner}/{name}/aliases/{alias}/canary/promote": {"post"},
    "/api/v1/adapters/{owner}/{name}/aliases/{alias}/shadow": {"put", "delete"},
    "/api/v1/adapters/{owner}/{name}/aliases/{alias}/rollback": {"post"},
}
