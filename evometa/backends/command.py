"""One cell of a command task: the fit process leaves a folder, the judge process reads it.

Each gets one JSON object on standard input. The fit process is told the support and never the query. Both
run in process groups of their own, killed as a whole when the time is up.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evometa.contract import Task
from evometa.evaluate.data import Loaded
from evometa.space import Candidate

_MOST_OUTPUT = 1 << 20  # bytes of a command's output that are read; metrics are its last line
_MESSAGE = 400


def run_cell(
    task: Task, candidate: Candidate, fit_key: int, judge_keys: Mapping[str, int], domain: Loaded
) -> dict[str, Any]:
    """Metrics by query name; `RuntimeError` with the command's last words where one fails, `TimeoutError` late."""
    limit = task.time_limit
    deadline = None if limit is None else time.monotonic() + limit
    with tempfile.TemporaryDirectory(prefix="evometa-cell-") as folder:
        learned = Path(folder) / "learned"
        learned.mkdir()
        request = {"candidate": candidate, "key": fit_key, "support": domain.support, "learned": str(learned)}
        call("fit", task.fit, request, deadline, limit)
        judged: dict[str, Any] = {}
        for query, data in domain.queries.items():
            answer = call(
                "judge", task.judge, {"key": judge_keys[query], "learned": str(learned), "query": data}, deadline, limit
            )
            judged[query] = _last_line(answer, query)
        return judged


def call(
    role: str, command: Sequence[str], request: Mapping[str, Any], deadline: float | None, limit: float | None
) -> str:
    """What a command printed, given one JSON object on standard input.

    Raises `RuntimeError` with its last words where it fails or cannot be started, `TimeoutError` at the deadline.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                list(command), stdin=subprocess.PIPE, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            raise RuntimeError(f"{role} command {command[0]!r} cannot be started: {error.strerror}") from None
        try:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            process.communicate(json.dumps(request, default=_plain).encode(), timeout=left)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{role} command took longer than {limit:g} s") from None
        finally:
            _end(process)
        if process.returncode != 0:
            words = _tail(err).strip().splitlines()
            last = words[-1][:_MESSAGE] if words else "no message on standard error"
            raise RuntimeError(f"{role} command ended with status {process.returncode}: {last}")
        return _tail(out)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process group: also children that outlived a command that ended well."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(file: Any) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MOST_OUTPUT))
    return file.read().decode(errors="replace")


def _last_line(text: str, query: str) -> Any:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise RuntimeError(
            f"judge command on {query!r} expected metrics as JSON on its last output line, got no output"
        )
    try:
        return json.loads(lines[-1])
    except json.JSONDecodeError:
        raise RuntimeError(
            f"judge command on {query!r} expected JSON on its last output line, got {lines[-1][:80]!r}"
        ) from None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a command's request holds JSON values and paths, got {type(value).__name__}")
