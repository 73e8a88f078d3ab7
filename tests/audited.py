"""A process that runs commands of evometa and notes everything that reading an archive must not do.

`python audited.py FOLDER RUN` with one command a line, as JSON, on standard input (`["open", RUN]` is `evometa.open`,
and all that can be asked of it). The last line of standard output is a JSON list of violations; before it comes what
the commands printed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from hostile import EVIL

NEVER = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"),
    *("pickle.find_class", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile", "code.__new__"),
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def look(run: str) -> None:
    """Everything that reads a run from Python, as a notebook shows it."""
    import evometa

    opened = evometa.open(run)
    said = [getattr(opened, name) for name in ("name", "generations", "champion", "params", "space", "record")]
    said += [opened.lineage().to_pylist(), opened.top(), opened.ancestry(2, 0), opened.summary(), opened]
    said += [opened.query("SELECT * FROM lineage"), opened._repr_html_(), opened.archive.timings().to_pylist()]
    said += [opened.archive.judgements().to_pylist(), opened.archive.scores()]
    for one in said:
        print(repr(one))


def main() -> None:
    """Run the commands under the hook."""
    folder = str(Path(sys.argv[1]).resolve())
    found: list[str] = []
    watching = False

    def hook(event: str, args: tuple[object, ...]) -> None:
        if not watching:
            return
        if event in NEVER:
            found.append(f"{event} {args!r}"[:300])
        elif event == "open" and isinstance(args[2], int) and args[2] & WRITES and args[0] != os.devnull:
            found.append(f"write {args[0]!r}")
        elif event == "import" and str(args[1] or "").startswith(folder):
            found.append(f"import {args[0]} from {args[1]}")
        elif event == "exec" and str(getattr(args[0], "co_filename", "")).startswith(folder):
            found.append(f"exec {args[0]!r}")
        elif event == "compile" and (EVIL in str(args[0] or "") or str(args[1] or "").startswith(folder)):
            found.append(f"compile {args!r}"[:300])

    sys.addaudithook(hook)
    from unittest import mock

    from evometa.cli import main as command

    for line in sys.stdin:
        words = json.loads(line)
        watching = True
        try:
            with mock.patch.object(sys, "argv", ["evometa", *words]), contextlib.suppress(SystemExit):
                look(words[1]) if words[:1] == ["open"] else command()
        finally:
            watching = False
        print(flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
