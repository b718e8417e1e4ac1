"""Who calls, and whether they may: dependencies that every route behind a key declares one of.

    Caller     a known key
    Seeing     … that may see the adapter of the path; to others it does not exist
    Changing   … that may change it

So no route is answered before its key is known, and none decides by itself what a key may do (`adapters_store/access.py`).
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from adapters_store.access import Scope
from adapters_store.errors import NotFound, PermissionDenied
from adapters_store.keys import KeyRecord
from adapters_store.lookup import unknown_adapter
from deployments.api.names import check_names
from deployments.api.services import Services, services_of


async def authenticated(request: Request) -> KeyRecord:
    """The record of the request's key. Raises NotAuthenticated, Overloaded, StoreUnavailable."""
    return await services_of(request).auth.authenticate(request.headers.get("authorization"))


Caller = Annotated[KeyRecord, Depends(authenticated)]


async def _seeing(request: Request, caller: Caller, owner: str, name: str) -> KeyRecord:
    check_names(owner=owner, name=name)
    if not caller.owns(owner) and await _is_hidden(services_of(request), owner, name):
        raise unknown_adapter(owner, name)
    return caller


async def _changing(request: Request, caller: Caller, owner: str, name: str) -> KeyRecord:
    check_names(owner=owner, name=name)
    if caller.owns(owner):
        caller.require(Scope.UPLOAD)
        return caller
    # The same words for a name that is free and for one that is hidden: they tell nothing of what others have.
    if await _is_hidden(services_of(request), owner, name):
        raise NotFound(
            f"adapter '{owner}/{name}' does not exist, and this key may not make it: its tenant is {caller.tenant}, whose adapters are "
            f"named {caller.tenant}/…",
            param="owner",
        )
    raise PermissionDenied(f"adapter '{owner}/{name}' may be changed by its owner alone, and this key's tenant is {caller.tenant}")


Seeing = Annotated[KeyRecord, Depends(_seeing)]
Changing = Annotated[KeyRecord, Depends(_changing)]


async def _is_hidden(services: Services, owner: str, name: str) -> bool:
    """Whether other tenants than its owner are told that this adapter does not exist; true where it does not."""
    try:
        return await services.run(lambda: services.registry.is_private(owner, name))
    except NotFound:
        return True
