"""A bucket on 127.0.0.1 for tests: a server in this process that can be stopped and started again with its objects."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import warnings
from pathlib import Path

import pytest
from helpers import cli

from evometa.archives import events, lease, place, pull, store

BUCKET = "bucket"

SMALL = ("run", "plain.py", "--population", 4, "--generations", 2, "--strategy", "genetic", "--name", "x")


class Server:
    """An S3 server; its objects outlive `stop` and `start`."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.port, self._server = 0, None
        self.start()

    def start(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from moto.moto_server.threaded_moto_server import ThreadedMotoServer
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    @property
    def variables(self) -> dict[str, str]:
        """What the environment says of it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }


class Bucket:
    """The bucket of one test, and this machine's copy of it."""

    def __init__(self, server: Server, client, folder: Path) -> None:
        self.server, self._client, self.folder = server, client, folder
        self.url = f"s3://{BUCKET}/runs"

    def put(self, key: str, data: bytes) -> None:
        """Any name at all: another program than ours."""
        self._client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        return self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def remove(self, key: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=key)

    def names(self, prefix: str = "") -> list[str]:
        found = self._client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return sorted(one["Key"] for one in found)

    def lineage(self, run: str) -> dict[str, bytes]:
        """Name and bytes of every lineage part in the bucket."""
        return {Path(key).name: self.get(key) for key in self.names(f"runs/{run}/lineage/")}

    def copy(self, name: str) -> Path:
        """Where this machine has its copy."""
        return place.local(f"{self.url}/{name}")

    def forget(self) -> None:
        """Another machine: nothing of the store is here."""
        shutil.rmtree(self.folder / "evometa" / "stores", ignore_errors=True)
        pull._known.clear()
        pull._lines.clear()


@pytest.fixture(scope="module")
def server():
    found = Server()
    yield found
    found.stop()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch, compile_cache):
    """An empty bucket, leases of a second, a patience of two."""
    import boto3

    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", compile_cache)  # that would be there otherwise
    monkeypatch.setattr(lease, "ANSWER", 2.0)
    monkeypatch.setattr(store, "PATIENCE", 2.0)
    monkeypatch.setattr(lease, "LEASE", 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = boto3.client("s3", endpoint_url=server.variables["AWS_ENDPOINT_URL"], region_name="us-east-1")
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=BUCKET)
    found = Bucket(server, client, tmp_path / "cache")
    for key in found.names():
        found.remove(key)
    yield found
    place._stores.clear()
    pull._known.clear()
    pull._lines.clear()
    assert not [thread for thread in threading.enumerate() if thread.name == "leases" and lease._RENEWER._leases]


_MADE: dict[str, bytes] = {}  # its objects


@pytest.fixture
def made(bucket, folder):  # `folder` is where its task is
    """The small run in the bucket, finished; the way it comes there is a run's own, once."""
    if not _MADE:
        assert cli(*SMALL, "--out", bucket.url).code == 0
        _MADE.update({key: bucket.get(key) for key in bucket.names()})
        bucket.forget()
    for key, data in _MADE.items():
        bucket.put(key, data)
    return {"path": f"{bucket.url}/x"}


@pytest.fixture
def diary(bucket):
    """`diary()` is what the run `x` in the bucket says happened, the chain verified."""

    def read():
        if "runs/x/events.jsonl" not in bucket.names():
            return []
        entries, _, wrong = events.good_part(bucket.get("runs/x/events.jsonl"))
        assert not wrong
        return entries

    return read
