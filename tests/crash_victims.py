"""Processes that strace stops at any file call, and what to compare of what they leave."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import crash_workload
import pytest
from crash_disk import Disk

HERE = Path(__file__).parent
# Calls that touch a disk; where this machine has others (open, pwrite ...), they are met by the names it uses.
CHANGES = (
    *("openat", "open", "write", "pwrite64", "fsync", "fdatasync", "ftruncate", "link", "linkat", "rename"),
    *("renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "flock", "close"),
)
# Each call gets one of them in turn; with another first one (`make soak`) each call gets the others, too.
FIRST_ERROR = int(os.environ.get("EVOMETA_TEST_FIRST_ERROR", "0"))
ERRORS = tuple(("ENOSPC", "EIO", "EDQUOT")[(turn + FIRST_ERROR) % 3] for turn in range(3))


def left_behind(run: Path, acks: list[str]) -> int:
    """A number for what a stopped run left; many places to stop at leave the same, and one look is enough."""
    found = [str(len(acks))]
    for path in sorted(run.rglob("*")):
        name = re.sub(r"\.\d+(-\d+)?$", "", str(path.relative_to(run)))  # staged names hold a process id
        # Events hold times, always of the same length.
        found.append(
            f"{name} {path.stat().st_size if path.name == 'events.jsonl' else path.is_file() and path.read_bytes()}"
        )
    return hash("\n".join(found))


class Victims:
    """Processes that run the workload under strace, one for each way to stop it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.numbers = itertools.count()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
        self.server = subprocess.Popen(
            [sys.executable, crash_workload.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.server.stdout
        return self.server.stdout.readline().strip()

    def ask(self, line: str) -> None:
        assert self.server.stdin
        self.server.stdin.write(line + "\n")
        self.server.stdin.flush()

    def run(self, *options: str, verb: str = "run", template: Path | None = None) -> tuple[Path, int, list[str], str]:
        """Folder, exit code (negative: signal), acknowledgements and trace of one run (on a copy of `template`)."""
        run = self.root / f"run-{next(self.numbers)}"
        if template is not None:
            shutil.copytree(template, run)
        self.ask(f"{verb} {run}")
        pid = int(self.answer())
        command = ["strace", "-f", "-q", "-y", "-s", "200", "-o", f"{run}.trace", "-p", str(pid), *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text() and strace.poll() is None:
                time.sleep(0.001)
            refused = strace.poll() is not None
            self.ask("go")
            code = int(self.answer())
            strace.wait(30)
            if refused:
                pytest.skip(f"strace may not attach here: {strace.stderr.read().strip() if strace.stderr else ''}")
        return run, code, Path(f"{run}.acks").read_text().splitlines(), Path(f"{run}.trace").read_text()


def serve(root: Path):
    """For a fixture: `yield from serve(folder)`."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; on Debian: apt-get install strace")
    if not sys.platform.startswith("linux"):
        pytest.skip("strace is for Linux")
    made = Victims(root)
    yield made
    assert made.server.stdin and made.server.stdout
    made.server.stdin.close()
    made.server.stdout.close()
    made.server.wait(30)


def count_calls(victims: Victims, **options) -> dict[str, int]:
    """How often an undisturbed run makes each file call."""
    _, code, _, trace = victims.run(**options)
    assert code == 0
    counted = Counter(re.findall(r"^\d+ +(\w+)\(", trace, re.MULTILINE))
    return {name: counted[name] for name in CHANGES if counted[name]}


def kill_points(victims: Victims, **options) -> list[tuple[str, int]]:
    """The calls before which a kill leaves a state of its own: those that change what the next process finds.

    A kill before a call that reads, locks, syncs or closes leaves what a kill before the next change does, for a kill
    takes nothing from the page cache; power cuts are drilled apart, see `cut_power`.
    """
    _, code, _, trace = victims.run(**options)
    assert code == 0
    counted: Counter[str] = Counter()
    points = []
    for name, rest in re.findall(r"^\d+ +(\w+)\((.*)", trace, re.MULTILINE):
        counted[name] += 1
        opened = name in ("open", "openat") and not re.search("O_CREAT|O_TRUNC", rest)
        if name in CHANGES and name not in ("flock", "fsync", "fdatasync", "close") and not opened:
            points.append((name, counted[name]))
    return points


# What may have become of bytes and names that were not fsynced.
FATES = ("nothing", "names only", "names and zeros", "names and halves", "everything", "some", "some more")


def cut_power(disk: Disk, folder: Path, survives: Callable[[Path, list[str]], None], first: int = 0) -> int:
    """Every disk that a loss of power can leave after operation `first` and each later one, built in `folder` and handed
    to `survives` with the acknowledgements until then; equal disks once. Returns how many there were."""
    disks: set[int] = set()
    for moment in range(first, len(disk.operations) + 1):
        acks = disk.acks(moment)
        for kind in FATES:
            disk.materialize(folder, moment, kind, random.Random(f"{moment} {kind}"))
            if (mark := left_behind(folder, acks)) not in disks:
                disks.add(mark)
                try:
                    survives(folder / "run", acks)
                except Exception as error:
                    where = disk.operations[moment - 1] if moment else "start"
                    raise AssertionError(f"power lost after {moment} operations {where}, {kind}: {error!r}") from error
            shutil.rmtree(folder, ignore_errors=True)
    return len(disks)
