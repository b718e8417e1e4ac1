"""Orders to read adapters, past the engine's loop: from a replica straight to a thread in each worker of its engine.

    replica: ReadOrders ── {"number", "name", "path"} ──▶ OrderDesk: a thread of the worker reads the folder
                        ◀── {"number", "whole"} ─────────            the moment it is done

What the loop itself is asked waits for the end of the step that runs, and what follows from its answer for the end of the next: an adapter
ordered through it would be read a step late and noticed another step late, for each request that needs one. The messages are lines of
JSON on a Unix socket; a model's workers are all on its replica's node (`app.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONNECT_SECONDS = 30.0  # between a worker's socket being there and its replica connecting

logger = logging.getLogger(__name__)


class OrderDesk:
    """A worker's end: takes the orders of one replica until that closes. `read` begins to read an adapter (name, number, path)."""

    def __init__(self, folder: str, read: Callable[[str, int, str], Future[Any]]) -> None:
        self.path = str(Path(folder) / str(os.getpid()))
        self._read = read
        self._telling = threading.Lock()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen(1)
        listener.settimeout(CONNECT_SECONDS)
        threading.Thread(target=self._serve, args=(listener,), name="adapter-orders", daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        with listener:
            connection, _ = listener.accept()
        connection.settimeout(None)
        with connection, connection.makefile("rb") as orders:
            for line in orders:
                self._take(connection, **json.loads(line))

    def _take(self, connection: socket.socket, number: int, name: str, path: str) -> None:
        try:
            read = self._read(name, number, path)
        except Exception:  # no thread to be had, say: that order fails, and the desk stays open for those to come
            logger.exception("adapter_not_read", extra={"adapter": name})
            self._tell(connection, number, whole=False)
            return
        read.add_done_callback(lambda done: self._tell(connection, number, whole=not done.cancelled() and done.exception() is None))

    def _tell(self, connection: socket.socket, number: int, *, whole: bool) -> None:
        # An OSError: the replica is gone, and nobody waits.
        with contextlib.suppress(OSError), self._telling:
            connection.sendall(_line(number=number, whole=whole))


@dataclass(slots=True)
class _Order:
    told: asyncio.Future[bool]
    missing: int  # workers that have not answered
    whole: bool = True


class ReadOrders:
    """A replica's end. Runs in one event loop."""

    def __init__(self) -> None:
        self._orders: dict[int, _Order] = {}
        self._writers: list[asyncio.StreamWriter] = []
        self._listening: list[asyncio.Task[None]] = []
        self._lost = False

    @classmethod
    async def connect(cls, paths: Sequence[str]) -> ReadOrders:
        """To the desk of every worker. Raises OSError, TimeoutError."""
        orders = cls()
        for path in paths:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(path)
            orders._writers.append(writer)
            orders._listening.append(asyncio.get_running_loop().create_task(orders._listen(reader)))
        return orders

    @property
    def lost(self) -> bool:
        """Whether a worker has ended: nothing can be read any more."""
        return self._lost

    async def read(self, name: str, number: int, path: str) -> bool:
        """Have every worker read the adapter in the folder `path`; whether all could. `number` is one that was never given before.

        Raises ConnectionResetError once a worker has ended.
        """
        if self._lost:
            raise _ended()
        order = self._orders[number] = _Order(asyncio.get_running_loop().create_future(), len(self._writers))
        try:
            for writer in self._writers:
                writer.write(_line(number=number, name=name, path=path))
            return await order.told
        finally:
            del self._orders[number]

    def close(self) -> None:
        for task in self._listening:
            task.cancel()
        for writer in self._writers:
            writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._note(**json.loads(line))
        finally:
            self._lost = True
            for order in self._orders.values():
                if not order.told.done():
                    order.told.set_exception(_ended())

    def _note(self, number: int, whole: bool) -> None:
        order = self._orders.get(number)
        if order is None or order.told.done():
            return  # it was given up
        order.missing -= 1
        order.whole = order.whole and whole
        if not order.missing:
            order.told.set_result(order.whole)


def _ended() -> ConnectionResetError:
    return ConnectionResetError("a worker of the engine has ended")


def _line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"
