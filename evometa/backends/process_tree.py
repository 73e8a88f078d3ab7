"""Everything that a process started: its memory, and its end. Linux's /proc; elsewhere the process group alone."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / (1 << 20) if hasattr(os, "sysconf") else 0.0
_ROUNDS = 20


def descendants(pid: int) -> list[int]:
    """Children, their children and so on; those in sessions of their own too."""
    found, queue = [], [pid]
    while queue:
        below = children(queue.pop())
        found += below
        queue += below
    return found


def children(pid: int) -> list[int]:
    """The processes that it started and that are still there."""
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, ValueError):
                found += map(int, (thread / "children").read_text().split())
    return found


def memory_mb(pid: int) -> float:
    """Resident memory of a process and all that it started, in MB. Shared pages count for each."""
    total = 0.0
    for one in (pid, *descendants(pid)):
        with suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * _PAGE_MB
    return total


def can_measure() -> bool:
    """Whether memory can be measured here."""
    return Path("/proc/self/statm").exists() and Path(f"/proc/self/task/{os.getpid()}/children").exists()


def kill(pid: int) -> None:
    """Kill a process that leads its group, and all that it started; returns when none of them runs any more.

    The caller still has to wait for the process itself.
    """
    for number in range(_ROUNDS):
        # Asked anew each time: what is being killed may have started others meanwhile.
        alive = [one for one in descendants(pid) if _runs(one)]
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        for one in (*alive, pid):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(one, signal.SIGKILL)
        if not alive and not _runs(pid):
            return
        time.sleep(0.001 * (number + 1))


def _runs(pid: int) -> bool:
    """Whether a process is there and more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
