"""One way to write a table of figures: CSV, a header, numbers with so many significant digits."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def save(path: Path, rows: Sequence[Mapping[str, Any]], fields: Sequence[str] | None = None, digits: int = 4) -> None:
    """Write `rows` to `path` as CSV; parent folders are made. `fields`: the columns, by default those of the first row.

    Floats are written with `digits` significant digits, everything else as it is; a missing column stays empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0] if fields is None else fields), lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({k: f"{v:.{digits}g}" if isinstance(v, float) else v for k, v in row.items()})
