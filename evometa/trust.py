"""Whose code a run on disk may start: the user's, and never the archive's.

A run's record names code: a task file, a module, the commands of a command task. Whoever hands on an archive writes
that record, so it is followed only where this user started the run, or said `evometa trust RUN`. What users started
or trust is kept outside the archives, as sha256 of run.json, one a line, in `$XDG_STATE_HOME/evometa/runs`
(`~/.local/state/evometa/runs`). evometa's own tasks and strategies, and installed plug-ins, need no trust.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evometa.errors import ResumeMismatch, StorageError
from evometa.printable import printable

RECORD = "run.json"
_IN_MEMORY = "evometa_in_memory:"


class Code(NamedTuple):
    """Code of the user's that a record names."""

    what: str  # task, strategy, command
    reference: str  # as the record names it
    file: Path | None  # where it would be taken from; None for what no file holds
    same: bool | None  # whether its source has the recorded digest; None where that can only be told later


def state_file() -> Path:
    """Where it is written which runs are the user's own or trusted."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "evometa" / "runs"


def remember(record: bytes, path: Path) -> bool:
    """Keep that the run with this run.json is the user's; False where the state folder cannot be written."""
    try:
        file = state_file()
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = f"{hashlib.sha256(record).hexdigest()} {printable(str(Path(path).absolute()), lines=False)}\n"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line.encode(errors="replace"))
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return False
    return True


def is_mine(path: Path) -> bool:
    """Whether this user started or trusts the run."""
    try:
        word = hashlib.sha256((path / RECORD).read_bytes()).hexdigest()
        return any(line.startswith(word) for line in state_file().read_text(errors="replace").splitlines())
    except (OSError, RuntimeError):
        return False


def trust(path: Path, record: Mapping[str, Any]) -> list[Code]:
    """Follow what the record names from now on. Returns what that is; raises `StorageError` where it cannot be kept."""
    found = list(codes(path, record))
    if not remember((path / RECORD).read_bytes(), path):
        raise StorageError(f"{state_file()} cannot be written. Set XDG_STATE_HOME to a folder that can")
    return found


def require(path: Path, record: Mapping[str, Any], same: bool = True) -> None:
    """Nothing, or `ResumeMismatch`: before anything that the record names is imported or started.

    Raised where the run is not the user's and names code, where a file lies inside a run's folder, and where its
    source is not what the run was started with (`same`; a fork may have other code than its parent).
    """
    found = list(codes(path, record))
    if found and not is_mine(path):
        names = "; ".join(describe(code) for code in found)
        raise ResumeMismatch(
            f"{path.name} was not started here by you, and to go on with it means to run what it names: {names}."
            f" Look at it, and if you trust it, type: evometa trust {path}"
        )
    for code in found:
        if code.file is not None and _run_around(code.file):
            raise ResumeMismatch(
                f"{path.name} names the {code.what} {code.reference!r}, which lies inside a run's folder. Code is never"
                " taken from an archive: move it to a folder of your own"
            )
        if same and code.same is False:
            raise ResumeMismatch(
                f"the {code.what} changed since the run started (its code). Put it back, or start a fork with:"
                " evometa run ... --from RUN@GENERATION"
            )


def codes(path: Path, record: Mapping[str, Any]) -> Iterator[Code]:
    """The code that a record names, but for what evometa and its installed plug-ins bring. Imports nothing of it."""
    from evometa import names

    spec, base = record["spec"], Path(record["folder"])
    reference, recorded = spec["task"], record["task"]
    if isinstance(reference, Mapping):
        for role in ("fit", "judge"):
            yield Code("command", " ".join(map(str, reference.get(role, ()))), None, None)
    elif not str(reference).startswith(_IN_MEMORY) and reference not in names.known("tasks"):
        # What a command task's files are is only known once its file was read.
        digest = None if recorded.get("runs") == "command" else recorded["code"]
        yield _code("task", str(reference), base, digest)
    strategies = {str(spec["strategy"]): record["strategy"].get("code")}
    for table in spec.get("nest") or ():
        strategies.setdefault(str(table.get("strategy")), None)
    for name, digest in strategies.items():
        if name != "None" and name not in names.known("strategies"):
            yield _code("strategy", name, base, digest)


def describe(code: Code) -> str:
    """One piece of code in a few words."""
    where = "" if code.file is None else f" ({code.file})"
    changed = ", which is not the code that the run was started with" if code.same is False else ""
    return f"{code.what} {code.reference!r}{where}{changed}"


def _code(what: str, reference: str, base: Path, digest: str | None) -> Code:
    from evometa import names

    path = reference.partition(":")[0]
    if not path.endswith(".py"):
        return Code(what, reference, None, None)
    file = names.find_file(path, base)
    same = None if not digest or not file.is_file() else names.sources_digest(file) == digest
    return Code(what, reference, file.absolute(), same)


def _run_around(file: Path) -> bool:
    return any((folder / RECORD).is_file() for folder in file.resolve().parents)
