"""Objects of a bucket, spoken to over the S3 interface: whole objects under names, and puts with a condition.

A put with a condition is what a commit rests on: "only where nothing has the name", or "only where it is still what I
read". Stores that ignore conditions are found out before anything is written (`conditions`). obstore does the work:
signing, retries with a bounded patience, TLS. Credentials, region and endpoint come from the usual AWS_* variables.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from typing import Any, NamedTuple

from evometa.errors import IntegrityError, StorageError

PATIENCE = 60.0  # seconds for which a request is tried again before the store counts as out of reach
TIMEOUT = 120.0  # seconds of one attempt, the transfer included
SMALL = 64 << 20  # bytes of a diary, a ledger, a record
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


class Refused(Exception):
    """The condition of a put does not hold: somebody has the name, or wrote it since it was read."""


class Gone(Exception):
    """There is no object of that name."""


class Unreachable(StorageError):
    """The store does not answer, or not as it should; whoever asked adds what to type when it is mended."""


class Entry(NamedTuple):
    """An object as a listing tells it."""

    key: str
    size: int  # bytes
    tag: str  # another one means other bytes


class Store:
    """A bucket. Keys are whole names in it; every method raises `StorageError` where the store cannot be asked."""

    def __init__(self, bucket: str, *, patience: float | None = None, timeout: float | None = None) -> None:
        self.bucket = bucket
        self._patience, self._timeout = patience, timeout

    @cached_property
    def _client(self) -> Any:
        if importlib.util.find_spec("obstore") is None:
            raise StorageError(f"s3://{self.bucket}: runs in an object store need pip install 'evometa[s3]'")
        from obstore.store import S3Store

        patience = PATIENCE if self._patience is None else self._patience
        timeout = TIMEOUT if self._timeout is None else self._timeout
        plain = endpoint().startswith("http://")  # the user's own word: a server in the same house
        return S3Store(
            self.bucket,
            client_options={"timeout": f"{timeout * 1000:.0f}ms", "connect_timeout": "5s", "allow_http": plain},
            retry_config={
                "max_retries": 20,
                "retry_timeout": timedelta(seconds=patience),
                "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5)},
            },
        )

    def put(self, key: str, data: Any, *, new: bool = False, tag: str | None = None) -> str:
        """Store bytes under a name and return their tag.

        `new`: only where nothing has the name. `tag`: only where what has it still has this tag. Raises `Refused`.
        """
        mode: Any = "create" if new else "overwrite" if tag is None else {"e_tag": tag}
        try:
            # A request that was answered but not heard is sent again, and then meets its own first one: see mirror.put.
            found = self._client.put(key, bytes(data), mode=mode, use_multipart=False)
        except Exception as error:
            # Nothing there any more is as much a refusal as something else there.
            if type(error).__name__ in ("AlreadyExistsError", "PreconditionError", "NotModifiedError"):
                raise Refused(key) from None
            raise self._said(key, error) from None
        return str(found["e_tag"] or "")

    def get(self, key: str, most: int = SMALL) -> tuple[bytes, str]:
        """The bytes of a small object and their tag. Raises `Gone`, and `IntegrityError` for more than `most` bytes."""
        pieces, tag = self.stream(key)
        found = bytearray()
        for piece in pieces:
            found += piece
            if len(found) > most:
                raise IntegrityError(f"s3://{self.bucket}/{key}: expected at most {most} bytes, got more")
        return bytes(found), tag

    def stream(self, key: str) -> tuple[Iterator[bytes], str]:
        """The bytes of an object in pieces, and its tag. Raises `Gone`."""
        try:
            found = self._client.get(key)
            return self._pieces(key, found), str(found.meta["e_tag"] or "")
        except Exception as error:
            raise self._said(key, error) from None

    def _pieces(self, key: str, found: Any) -> Iterator[bytes]:
        pieces = iter(found.stream(min_chunk_size=1 << 20))
        while True:
            try:
                piece = next(pieces, None)
            except Exception as error:
                raise self._said(key, error) from None
            if piece is None:
                return
            yield bytes(piece)

    def has(self, key: str) -> bool:
        """Whether an object has this name."""
        try:
            self._client.head(key)
        except Exception as error:
            if isinstance(said := self._said(key, error), Gone):
                return False
            raise said from None
        return True

    def list(self, prefix: str, most: int | None = None) -> list[Entry]:
        """All objects below a prefix (whole segments), or about the first `most` of them."""
        found: list[Entry] = []
        try:
            for chunk in self._client.list(prefix or None, chunk_size=min(most or 1000, 1000)):
                found += [Entry(str(one["path"]), int(one["size"]), str(one["e_tag"] or "")) for one in chunk]
                if most is not None and len(found) >= most:
                    break
        except Exception as error:
            if isinstance(said := self._said(prefix, error), Gone):
                return []
            raise said from None
        return found

    def delete(self, key: str) -> None:
        """Remove an object; nothing where there is none."""
        try:
            self._client.delete(key)
        except Exception as error:
            if not isinstance(said := self._said(key, error), Gone):
                raise said from None

    def _said(self, key: str, error: Exception) -> Exception:
        """obstore's exception as one line of ours."""
        text = str(error)
        where, kind = f"s3://{self.bucket}/{key}".rstrip("/"), type(error).__name__
        if isinstance(error, StorageError | KeyboardInterrupt):
            return error
        if "NoSuchBucket" in text:
            return StorageError(f"s3://{self.bucket}: there is no such bucket. Make it, or give another --out")
        if isinstance(error, FileNotFoundError):
            return Gone(key)
        if kind == "InvalidPathError" or isinstance(error, ValueError):
            return IntegrityError(
                f"{where}: an object there has a name that leads elsewhere. Remove it: {_first(text)}"
            )
        if "169.254.169.254" in text or "InvalidCredentials" in text or "MissingCredentials" in text:
            return StorageError(f"s3://{self.bucket}: no credentials. Set {_KEYS} (and AWS_REGION)")
        if kind in ("PermissionDeniedError", "UnauthenticatedError"):
            return StorageError(
                f"the store refused {where}: these credentials may not do that ({_code(text)}). Correct {_KEYS}, or"
                " what they are allowed"
            )
        at = endpoint() or "AWS"
        return Unreachable(f"the store refused {where} ({_code(text) or _first(text)} at {at})")


def endpoint() -> str:
    """Where requests go, as the environment says; empty for AWS."""
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")


def conditions(store: Store, key: str) -> None:
    """Raise `StorageError` where the store ignores conditions; `key` is an object that is there and may be lost."""
    for new in (True, False):
        try:
            store.put(key, b"", new=new, tag=None if new else '"00000000000000000000000000000000"')
        except Refused:
            continue
        raise StorageError(
            f"s3://{store.bucket} ignores conditions of a put (If-None-Match, If-Match), so two writers could overwrite"
            " each other. Use a store that knows them (AWS, MinIO, R2, Ceph of 2024 and later), or a local --out"
        )


def _first(text: str) -> str:
    return (text.strip().splitlines() or [""])[0][:200].rstrip(". ")


def _code(text: str) -> str:
    """What S3 calls the error, or what went wrong on the way; empty where neither shows."""
    if "<Code>" in text:
        return text.partition("<Code>")[2].partition("</Code>")[0][:60]
    for words in ("Connection refused", "dns error", "operation timed out", "tcp connect error", "connection closed"):
        if words in text:
            return words
    return ""
