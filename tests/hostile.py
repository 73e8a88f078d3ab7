"""Archives as somebody with bad intent makes them: every hash in them is right."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import rewrite

from evometa.archives import events, sealed

EVIL = "X5EVIL"  # in every text that must not be obeyed
ESCAPES = f"\x1b]0;{EVIL}\x07\x1b[2J\x9b31m\u202e<script>{EVIL}</script>|[{EVIL}](javascript:{EVIL})"
# What runs, if it is ever imported or started: leaves a file where the test looks.
PAYLOAD = f"import os, pathlib\npathlib.Path(os.environ['EVOMETA_TEST_BITTEN']).write_text('{EVIL}')\n"


def forge(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change run.json, and make its seal and the diary agree."""
    file = run / "run.json"
    record = sealed.unseal(file.read_bytes(), file)
    change(record)
    data = sealed.seal(record)
    file.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    forge_diary(run, lambda e: {**e, "run_json_sha256": digest} if "run_json_sha256" in e else e)


def forge_diary(run: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the lines of the diary, and make the chain agree."""
    chain: list[dict[str, Any]] = []
    for entry in events.read_lines(run / "events.jsonl"):
        body = {k: v for k, v in change(entry).items() if k not in ("hash", "prev", "seq")}
        body |= {"seq": len(chain), "prev": chain[-1]["hash"] if chain else events.START}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        chain.append({**body, "hash": hashlib.sha256(text.encode()).hexdigest()})
    (run / "events.jsonl").write_text("".join(json.dumps(e, separators=(",", ":")) + "\n" for e in chain))


def make(run: Path, target: Path) -> Path:
    """A copy of an opened run of the task `plain` that does whatever harm an archive can try; returns its folder."""
    shutil.copytree(run, target)
    for name in ("task", "duckdb", "pyarrow", "altair", "sitecustomize", "conftest"):
        (target / f"{name}.py").write_text(PAYLOAD)

    def change(record: dict[str, Any]) -> None:
        record["spec"].update(task=f"{target}/task.py", task_options={"code": ESCAPES}, strategy=f"{target}/task.py")
        record["task"].update(name=ESCAPES, source=f"{target}/task.py")
        record["strategy"]["name"] = ESCAPES
        record["folder"] = str(target)
        record["tags"] = {"d3": {"group": ESCAPES}, "d4": {"group": "b"}}

    forge(target, change)
    forge_diary(target, lambda e: {**e, "label": ESCAPES} if e["kind"] == "champion" else {**e, "note": ESCAPES})
    for column in ("message", "text", "operator", "run"):
        rewrite(target, 0, column, lambda values: [ESCAPES] * len(values))
    return target
