"""One cell of a command task: the fit process leaves a folder, the judge process reads it.

Each gets one JSON object on standard input. The fit process is told the support and never the query. Both
run in process groups of their own, killed as a whole when the time is up.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from evometa.contract import Task
from evometa.errors import StorageError
from evometa.evaluate.data import Loaded
from evometa.space import Candidate

_MOST_OUTPUT = 1 << 20  # bytes of a command's output that are read; metrics are its last line
CELLS = "EVOMETA_CELLS"  # where a worker keeps its cells' folders: removed with it, however it ends
_LOOK = 0.1  # seconds between looks at how much was written, where that is limited
_MESSAGE = 2000  # a stored message is shorter still: it is cut after what differs between equal runs is taken out
_OUR_DISK = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT)  # no fault of the command that was to start


def run_cell(
    task: Task,
    candidate: Candidate,
    fit_key: int,
    judge_keys: Mapping[str, int],
    domain: Loaded,
    output_mb: float | None = None,
) -> dict[str, Any]:
    """Metrics by query name; `RuntimeError` with the command's last words where one fails, `TimeoutError` late.

    `output_mb`: the most that each command may write to its standard output and error.
    """
    limit = task.time_limit
    deadline = None if limit is None else time.monotonic() + limit
    with ExitStack() as stack:
        with _our_files():
            # What cannot be removed is left behind: it is no reason to end a run, nor the candidate's failure.
            cell = tempfile.TemporaryDirectory(
                prefix="evometa-cell-", dir=os.environ.get(CELLS), ignore_cleanup_errors=True
            )
            learned = Path(stack.enter_context(cell)) / "learned"
            learned.mkdir()
        request = {"candidate": candidate, "key": fit_key, "support": domain.support, "learned": str(learned)}
        call("fit", task.fit, request, deadline, limit, task.folder or None, output_mb)
        judged: dict[str, Any] = {}
        for query, data in domain.queries.items():
            asked = {"key": judge_keys[query], "learned": str(learned), "query": data}
            answer = call("judge", task.judge, asked, deadline, limit, task.folder or None, output_mb)
            judged[query] = _last_line(answer, query)
        return judged


def call(
    role: str,
    command: Sequence[str],
    request: Mapping[str, Any],
    deadline: float | None,
    limit: float | None,
    cwd: str | None = None,
    output_mb: float | None = None,
) -> str:
    """What a command printed, run in the folder `cwd` and given one JSON object on standard input.

    Raises `RuntimeError` with its last words where it fails, writes too much or cannot be started, `TimeoutError` at
    the deadline.
    """

    def too_much() -> bool:
        return output_mb is not None and sum(os.fstat(f.fileno()).st_size for f in (out, err)) > output_mb * (1 << 20)

    with ExitStack() as stack:
        with _our_files():
            asked, out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            asked.write(json.dumps(request, default=_plain).encode())
            asked.seek(0)
        try:
            process = subprocess.Popen(
                list(command), stdin=asked, stdout=out, stderr=err, cwd=cwd, start_new_session=True
            )
        except OSError as error:
            if error.errno in _OUR_DISK:
                raise _refused(error) from error
            raise RuntimeError(f"{role} command {command[0]!r} cannot be started: {error.strerror}") from None
        try:
            _wait(process, deadline, None if output_mb is None else too_much)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{role} command took longer than {limit:g} s") from None
        finally:
            _end(process)
        if too_much():
            raise RuntimeError(f"{role} command wrote more than {output_mb:g} MB of output")
        if process.returncode != 0:
            words = _tail(err).strip().splitlines()
            last = words[-1][:_MESSAGE] if words else "no message on standard error"
            raise RuntimeError(f"{role} command ended with status {process.returncode}: {last}")
        return _tail(out)


def _wait(process: subprocess.Popen[bytes], deadline: float | None, too_much: Callable[[], bool] | None) -> None:
    """Until the process ended, or wrote too much; `subprocess.TimeoutExpired` at the deadline."""
    while too_much is not None and not too_much():
        left = _LOOK if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            process.wait(min(_LOOK, left))
            return
        except subprocess.TimeoutExpired:
            if left < _LOOK:
                raise
    if too_much is None:
        process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the process group: also children that outlived a command that ended well."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(file: Any) -> str:
    with _our_files():
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MOST_OUTPUT))
        return file.read().decode(errors="replace")


@contextmanager
def _our_files() -> Iterator[None]:
    """Around evometa's own temporary files: a full disk is the machine's trouble, not the candidate's."""
    try:
        yield
    except OSError as error:
        raise _refused(error) from error


def _refused(error: OSError) -> StorageError:
    return StorageError(
        f"the temporary files of a cell cannot be kept: {error}. Free the disk, or set TMPDIR to another folder"
    )


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
