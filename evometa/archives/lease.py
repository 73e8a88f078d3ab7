"""Who may write a run in an object store: an object `run.lock`, renewed while its holder lives.

A disk's lock ends with the process that holds it; an object does not. So the holder writes it anew every few seconds,
always on the condition that it is still the holder's own, and whoever wants it watches: an object that does not change
for `LEASE` seconds has no holder. Nobody compares clocks of two machines. A holder that could not renew for that long
stops before its next commit.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Any

from evometa.archives.store import Gone, Refused, Store, conditions
from evometa.errors import EvometaError, StorageError
from evometa.printable import printable

LEASE = 30.0  # seconds without a renewal after which a run has no writer
ANSWER = 10.0  # seconds within which the store has to answer: a lease that waits for long is lost
LONGEST = 300.0  # that a lease may ask others to watch
LOCK = "run.lock"
_checked: set[str] = set()  # buckets that are known to heed conditions


class Lease:
    """The right to write one run; `take` it, `confirm` before every commit, `release` it."""

    def __init__(self, store: Store, folder: str, note: Path) -> None:
        self._store = Store(store.bucket, patience=ANSWER, timeout=ANSWER)
        self._key, self._name = f"{folder}/{LOCK}", f"s3://{store.bucket}/{folder}"
        self._note = note  # where the token is kept on this machine: a dead process's own lease is taken at once
        self._token, self._tag, self._beat = secrets.token_hex(16), "", 0
        self._confirmed, self._lost = -1e9, False
        self._own = threading.Lock()

    def take(self) -> bool:
        """Become the writer; True where the last one was on this machine (or there was none).

        Waits for up to `LEASE` seconds where the last one did not say that it ended. Raises `EvometaError` where it
        lives. The caller holds this machine's own lock of the run.
        """
        found, tag = self._look()
        known = self._note.read_text().strip() if self._note.is_file() else ""
        mine = not found or (known != "" and found.get("token") == known)
        if found and not found.get("released") and not mine:
            self._wait(found, tag)
        try:
            self._write(tag)
        except Refused:
            now, self._tag = self._look()
            if now.get("token") != self._token:  # or it was heard the first time, and the answer lost
                raise self._busy(str(now.get("holder"))[:200]) from None
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._note.write_text(self._token)
            if self._store.bucket not in _checked:
                conditions(self._store, self._key)
                _checked.add(self._store.bucket)
        except OSError as error:
            self.release()
            raise StorageError(f"{self._note}: {error.strerror or error}") from None
        except BaseException:
            self.release()  # or all others would wait for one that does not begin
            raise
        _RENEWER.add(self)
        return mine

    def confirm(self) -> None:
        """Nothing, or `EvometaError`: whether this is the writer still."""
        if not self._lost and _now() - self._confirmed > LEASE * 2 / 3:
            self.renew()  # the renewing thread was held up: by a paused process, a sleeping machine, a silent store
        if self._lost:
            raise EvometaError(
                f"another process took over {self._name}, because this one was silent for {LEASE:g} s. Nothing of it is"
                f" lost. Look on with: evometa watch {self._name}"
            )

    def renew(self) -> None:
        """Say once more that the writer lives. Raises `StorageError` where the store cannot be asked."""
        with self._own:
            if self._lost:
                return
            began = _now()
            try:
                self._write(self._tag)
            except Refused:
                found, tag = self._look()
                if found.get("token") == self._token:
                    self._tag, self._confirmed = tag, began  # heard before; only the answer was lost
                else:
                    self._lost = True

    def release(self) -> None:
        """Let others have it at once; where the store cannot be reached they wait."""
        _RENEWER.drop(self)
        with self._own:
            if not self._lost:
                self._lost = True
                try:
                    self._write(self._tag, released=True)
                except (Refused, EvometaError):
                    return

    def _write(self, tag: str, released: bool = False) -> None:
        began, self._beat = _now(), self._beat + 1
        holder = f"process {os.getpid()} on {platform.node()}"
        record = {"token": self._token, "holder": holder, "beat": self._beat, "lease": LEASE, "released": released}
        data = json.dumps(record).encode()
        self._tag = self._store.put(self._key, data, new=not tag, tag=tag or None)
        self._confirmed = began  # others watch from later on

    def _look(self) -> tuple[dict[str, Any], str]:
        try:
            data, tag = self._store.get(self._key, 1 << 16)
        except Gone:
            return {}, ""
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            record = None
        return record if isinstance(record, dict) and record else {"holder": "unknown"}, tag

    def _wait(self, found: dict[str, Any], tag: str) -> None:
        """Watch the object for a lease's length. Raises `EvometaError` where it changes."""
        asked = found.get("lease")
        seconds = min(LONGEST, max(LEASE, asked)) if isinstance(asked, int | float) else LEASE
        holder = str(found.get("holder"))[:200]
        print(
            printable(f"{self._name} was last written by {holder}, which did not say that it ended: watching it"),
            f"for {seconds:g} s",
            file=sys.stderr,
            flush=True,
        )
        end = _now() + seconds
        while _now() < end:
            time.sleep(min(2.0, seconds / 10))
            now, changed = self._look()
            if changed == tag:
                continue
            if now.get("released") or not now:
                raise self._busy(holder, "It ended just now: type it again")
            raise self._busy(holder)

    def _busy(self, holder: str, then: str = "") -> EvometaError:
        then = then or f"Look on with: evometa watch {self._name}"
        return EvometaError(f"another process is running {self._name} ({holder}). {then}")


class _Renewer:
    """One thread for all leases of this process."""

    def __init__(self) -> None:
        self._leases: list[Lease] = []
        self._own = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()

    def add(self, lease: Lease) -> None:
        """Renew it from now on."""
        with self._own:
            self._leases.append(lease)
            if self._thread is None or not self._thread.is_alive():
                self._wake = threading.Event()
                self._thread = threading.Thread(target=self._run, args=(self._wake,), daemon=True, name="leases")
                self._thread.start()

    def drop(self, lease: Lease) -> None:
        """No more. Waits for the thread where it was the last: Python must not end in the middle of a request."""
        ended = None
        with self._own:
            self._leases = [one for one in self._leases if one is not lease]
            if not self._leases:
                self._wake.set()
                ended, self._thread = self._thread, None
        if ended is not None:
            ended.join(2 * ANSWER)

    def _run(self, wake: threading.Event) -> None:
        while not wake.wait(LEASE / 3):
            with self._own:
                leases = list(self._leases)
            for lease in leases:
                try:
                    lease.renew()
                except EvometaError:
                    continue  # the next commit asks again, and says so


_RENEWER = _Renewer()


def _now() -> float:
    """Seconds that go on while the machine sleeps: its lease does not."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
