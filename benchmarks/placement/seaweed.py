"""An S3 server that answers many questions at once, as S3 does and the tests' moto does not: SeaweedFS, in a process of its own."""

from __future__ import annotations

import contextlib
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from benchmarks.processes import ProcessTree, running
from cluster.ports import pick_free
from tests.s3 import CREDENTIALS, START_TIMEOUT_SECONDS, S3Endpoint, endpoint_at

WEED = Path(sysconfig.get_path("scripts")) / "weed"


@contextlib.contextmanager
def seaweed_server() -> Iterator[S3Endpoint]:
    """Start it on free ports in a folder of its own, wait until it takes an object, and stop it in the end."""
    port, *others = pick_free(8)
    with tempfile.TemporaryDirectory(prefix="seaweed-", ignore_cleanup_errors=True) as folder:
        command = [str(WEED), "server", *_flags(folder, port, others)]
        with running(command, CREDENTIALS, Path(folder) / "weed.log") as processes:
            endpoint = endpoint_at(port)
            _wait_for_objects(endpoint, processes)
            yield endpoint


def _flags(folder: str, port: int, others: list[int]) -> list[str]:
    roles = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port.grpc")
    return [
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-volume.max=20",
        "-filer",
        f"-filer.localSocket={folder}/filer.sock",
        "-s3",
        f"-s3.localSocket={folder}/s3.sock",
        f"-s3.port={port}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{role}={other}" for role, other in zip(roles, others, strict=True)),
    ]


def _wait_for_objects(endpoint: S3Endpoint, processes: ProcessTree) -> None:
    """It answers before its parts have found one another. Raises RuntimeError when it ends, boto3's error when it takes too long."""
    client = endpoint.client()
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        processes.require_alive()
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket="is-it-there")
            client.put_object(Bucket="is-it-there", Key="key", Body=b"x")
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
