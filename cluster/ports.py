"""TCP ports: whether one is free, who holds it, and free ones to hand out. Used before Ray starts, and by `doctor`."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass

import psutil

ALL_INTERFACES = ("0.0.0.0", "::", "")  # noqa: S104  (compared with, never bound to)


@dataclass(frozen=True, slots=True)
class PortHolder:
    """The process that listens on a port; `pid` is None where the system does not tell us (another user's process)."""

    pid: int | None
    name: str

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name})" if self.pid else "a process of another user"


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections in TIME_WAIT do not count
        try:
            probe.bind((host, port))
            probe.listen()  # a bind alone may succeed beside a listener that shares its port
        except OSError:
            return False
        return True


def holder(port: int) -> PortHolder:
    """Who listens on `port`."""
    for connection in psutil.net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
            try:
                return PortHolder(connection.pid, psutil.Process(connection.pid).name())
            except psutil.Error:
                break
    return PortHolder(None, "")


def pick_free(count: int) -> list[int]:
    """`count` distinct ports that are free on all interfaces now. Another process may still take one before we do."""
    with ExitStack() as held:
        ports = []
        for _ in range(count):
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            probe.bind(("", 0))
            ports.append(int(probe.getsockname()[1]))
        return ports


def reachable_host(host: str) -> str:
    """The address a client on this machine uses for a server that listens on `host`."""
    return "127.0.0.1" if host in ALL_INTERFACES else host
