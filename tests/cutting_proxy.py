"""A TCP proxy that cuts connections: what a bad network does to a client, over real sockets.

with cutting_proxy(server.port, cut_after_bytes=[1_000_000, 2_000_000]) as proxy:
    Client(proxy.url, KEY)
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_READ_BYTES = 1 << 16


@dataclass
class CuttingProxy:
    """`sent_bytes` went from clients to the server; when they pass each of `cut_after_bytes`, every connection is cut."""

    port: int
    to_port: int
    cut_after_bytes: list[int]
    sent_bytes: int = 0
    cuts: int = 0
    _open: set[socket.socket] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset every connection, in the middle of whatever is sent."""
        with self._lock:
            self.cuts += 1
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RDWR)

    def carry(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self.to_port), timeout=30) as server:
            with self._lock:
                self._open |= {client, server}
            back = threading.Thread(target=_pump, args=(server, client, lambda size: None), daemon=True)
            back.start()
            _pump(client, server, self._count)
            back.join(30)
            with self._lock:
                self._open -= {client, server}

    def _count(self, size: int) -> None:
        with self._lock:
            self.sent_bytes += size
            due = bool(self.cut_after_bytes) and self.sent_bytes >= self.cut_after_bytes[0]
            if due:
                self.cut_after_bytes.pop(0)
        if due:
            self.cut()


def _pump(source: socket.socket, target: socket.socket, count) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_READ_BYTES):
            count(len(data))
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cutting_proxy(to_port: int, *, cut_after_bytes: Sequence[int] = ()) -> Iterator[CuttingProxy]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                proxy.carry(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as listening:
        proxy = CuttingProxy(listening.server_address[1], to_port, list(cut_after_bytes))
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            listening.shutdown()
            proxy.cut()
            thread.join(10)
