"""What stands beside the study of `learned_opt`: oracles, the muP switch, and speed.

    python benchmarks/learned_opt.py --study runs/learned-opt-standard    # after the study; about 10 minutes
    python benchmarks/learned_opt.py --quick                              # a test of the script itself

Every row is judged on the sealed domains, which the study has opened before: each of these runs is a further look,
entered in the ledger, and none of them chooses anything on them.

* swept_*: SGD, momentum, Adam and AdamW with their usual numbers and, for every domain and seed, the best of seven
  rates, chosen by the very loss that is reported. An oracle.
* nadamw: NAdamW with 1,536 random configurations (`--configurations`) for each of three seeds, as many as each arm of
  the study tried: drawn by random search on the domains that drive the search, the champion chosen on validation.
* mup: champions of the study's arms, unchanged, with the steps and initial weights of maximal update parametrization.

Writes benchmarks/results/learned_opt-<what>.csv: oracles, nadamw, mup, speed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.tables import save
from evometa.machine import keep_compilations, use_host_devices

RESULTS = Path(__file__).parent / "results"
SWEPT = ("swept_sgd", "swept_momentum", "swept_adam", "swept_adamw")
WIDE = ("digits-256-relu", "mixture10-256-tanh", "pixels-128x3-relu", "pixels-128x3-tanh")
QUICK = {"steps": 5, "train": ["iris-16-tanh"], "validation": [], "test": ["rings-16-relu", "moons-16-gelu"]}


def judged(name: str, out: Path, options: dict[str, Any], start: Any = "baseline") -> dict[str, float]:
    """Sealed loss by domain of one candidate, through a run of one generation without a search."""
    import evometa

    run = evometa.run(
        "learned_opt", strategy="static", population=1, generations=1, task_options=options, start=start,
        name=name, out=out, champion={"observed": 0, "replicates": 1},
    )  # fmt: skip
    return {row["domain"]: row["champion"] for row in run.unseal()["domains"]}


def nadamw(out: Path, options: dict[str, Any], configurations: int, seeds: int = 3) -> list[dict[str, Any]]:
    """Random configurations of NAdamW: sealed losses of every seed's champion, which is chosen as the study's are."""
    import evometa

    rows = []
    for seed in range(seeds):
        population = min(32, configurations)
        run = evometa.run(
            "learned_opt", strategy="random_search", population=population, generations=configurations // population,
            seed=seed, task_options={**options, "genome": "nadamw"}, name=f"nadamw-s{seed}", out=out,
        )  # fmt: skip
        numbers = {name: float(value) for name, value in run.params.items()}
        rows += [
            {"arm": "nadamw", "seed": seed, "domain": row["domain"], "loss": row["champion"], **numbers}
            for row in run.unseal()["domains"]
        ]
    return rows


def champions(study: Path, arms: Sequence[str]) -> dict[str, list[tuple[dict[str, Any], list[float]]]]:
    """Task options and genome of every search seed's champion, by arm."""
    from evometa import champion

    found: dict[str, list[tuple[dict[str, Any], list[float]]]] = {}
    for arm in arms:
        for folder in sorted(study.glob(f"{arm}-s*")):
            record, best = json.loads((folder / "run.json").read_text()), champion.last(folder)
            assert best is not None, folder
            found.setdefault(arm, []).append((record["spec"]["task_options"], best.genome.tolist()))
    return found


def mup(study: Path, out: Path) -> list[dict[str, Any]]:
    """Champions with and without muP on the wide networks; both in one way, so that they are paired."""
    rows = []
    for arm, members in champions(study, ("program", "adamw", "annealed")).items():
        for seed, (options, genome) in enumerate(members):
            for switch in (False, True):
                wide = {**options, "test": list(WIDE), "mup": switch}
                losses = judged(f"mup-{arm}-{seed}-{switch}", out, wide, genome)
                rows += [{"arm": arm, "seed": seed, "mup": switch, "domain": d, "loss": x} for d, x in losses.items()]
    return rows


def speed(population: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Candidates a second on the domains that drive the search, compiled; programs are Adam's."""
    import jax
    import numpy as np

    from evometa.evaluate.compiled import CompiledCells
    from evometa.evaluate.data import load
    from evometa.evaluate.plan import derive
    from evometa.tasks.learned_opt import learned_opt

    rows = []
    for genome in ("program", "adam"):
        task = learned_opt(genome=genome, **options)
        loaded, devices = load(task, task.split.train), len(jax.devices())
        cells = CompiledCells(task, loaded, derive(
            flops=1.0, live_bytes=1e6, population=population, row_bytes=1e3, devices=devices, platform="cpu"
        ), 1)  # fmt: skip
        genomes = np.repeat(task.space.encode(task.baseline)[None], population, axis=0)
        started = time.perf_counter()
        cells.host(jax.random.key(0), genomes)
        first = time.perf_counter() - started
        times = []
        for number in range(5):
            started = time.perf_counter()
            cells.host(jax.random.key(number), genomes)
            times.append(time.perf_counter() - started)
        least = min(times)
        rows.append({
            "genome": genome, "cores": devices, "candidates_per_second": population / least,
            "trainings_per_second": population * len(loaded) / least, "compile_seconds": first - least,
        })  # fmt: skip
    return rows


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--study", type=Path, help="The study whose champions are judged with muP.")
    parser.add_argument("--runs", type=Path, help="Keep the runs here.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=("oracles", "nadamw", "mup", "speed"))
    parser.add_argument("--configurations", type=int, default=1536, help="Of NAdamW, for each of three seeds.")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    use_host_devices()
    keep_compilations()
    options = QUICK if arguments.quick else {}
    with tempfile.TemporaryDirectory() as folder:
        out, tables = arguments.runs or Path(folder), dict[str, list[dict[str, Any]]]()
        if arguments.only in (None, "speed"):
            tables["speed"] = speed(8 if arguments.quick else 64, options)
        if arguments.only in (None, "oracles"):
            tables["oracles"] = [
                {"arm": name, "domain": domain, "loss": loss}
                for name in (SWEPT[:1] if arguments.quick else SWEPT)
                for domain, loss in judged(name, out, {**options, "genome": name}).items()
            ]
        if arguments.only in (None, "nadamw"):
            tables["nadamw"] = nadamw(out, options, 16 if arguments.quick else arguments.configurations)
        if arguments.only in (None, "mup") and arguments.study:
            tables["mup"] = mup(arguments.study, out)
    for name, rows in tables.items():
        save(arguments.out / f"learned_opt-{name}.csv", rows)
        print((arguments.out / f"learned_opt-{name}.csv").read_text())


if __name__ == "__main__":
    main()
