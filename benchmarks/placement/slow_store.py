"""A store that is as far away as S3: a TCP proxy before the S3 server that holds each request back.

    python -m benchmarks.placement.slow_store PORT TO_PORT MILLISECONDS

A process of its own, so that it waits for nobody. Answers come back at once, whatever their size.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.processes import ROOT
from tests.s3 import free_port

_READ_BYTES = 1 << 16


@contextlib.contextmanager
def slow_store(to_port: int, delay_ms: float) -> Iterator[str]:
    """Start it; yields its URL."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.placement.slow_store", str(port), str(to_port), str(delay_ms)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the slow store did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10.0)


async def _serve(port: int, to_port: int, delay_seconds: float) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", to_port)
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(reader, there_writer, delay_seconds))
            both.create_task(_pump(there_reader, writer, 0.0))

    server = await asyncio.start_server(carry, "127.0.0.1", port)
    print("ready", flush=True)
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_seconds: float) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_READ_BYTES):
            if delay_seconds:
                await asyncio.sleep(delay_seconds)
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1e3))
