"""The language ladder's demonstration for several search seeds: what `make run` shows, as a table.

    python benchmarks/ladder.py               # seeds 0 and 1, about 8 minutes; writes benchmarks/results/ladder.csv
    python benchmarks/ladder.py --quick       # the smoke profile: a test of the script itself

The languages are demonstration languages: they have been looked at before, and every look here is recorded
in the ledger of the folder that the runs are written to.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

from evometa.machine import keep_compilations, use_host_devices

RESULTS = Path(__file__).parent / "results" / "ladder.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=Path, help="Keep the runs here (and go on with those that are there).")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    use_host_devices()
    keep_compilations()
    from evometa.demo import demonstrate
    from evometa.reports.live import Live

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in (0,) if arguments.quick else (0, 1):
            profile = "smoke" if arguments.quick else "standard"
            result = demonstrate(arguments.runs or Path(folder), profile, seed, lambda arm: Live(title=arm))
            for row in result["rows"]:
                numbers = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
                rows.append({"search_seed": seed, **numbers, "evaluations": result["evaluations"]})
    arguments.out.parent.mkdir(exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
