"""CMA-ES tuned on some families of functions, judged on others, against its defaults.

A search of searches: every outer candidate is a set of hyperparameters, scored by whole CMA-ES searches on the train
functions of the task `functions` (5 families). Champions are chosen on the validation families (3) and judged on the
sealed test families (6), all runs in one opening. Arms, at equal evaluations: `all` (step size, four learning rates
and the damping, moved by CMA-ES), `random` (the same by random search), `sigma` (the step size alone, by CMA-ES).
The rival of each is CMA-ES with its defaults, on the same functions and keys. `train` rows: the same champions on
the functions that they were tuned on, with fresh keys.

    python benchmarks/tuning.py               # 3 arms x 8 search seeds, about 10 minutes of 2 cores
    python benchmarks/tuning.py --runs runs   # keep the runs there, and go on with those that are there
    python benchmarks/tuning.py --quick       # a smoke test of the script itself

Loss: log10(1e-8 + f) of the mean that a search ends with: a difference of -1 is a function value ten times lower.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.tables import save
from evometa.machine import cores, keep_compilations, use_host_devices

RESULTS = Path(__file__).parent / "results" / "tuning.csv"
FIELDS = ["part", "arm", "rival", "what", "value", "low", "high", "p", "families_low", "families_high", "wins", "unit"]
QUERY = "truth"


def _log(low: float, high: float) -> dict[str, Any]:
    return {"kind": "log", "low": low, "high": high}


SIGMA = {"sigma": _log(0.02, 1.0)}
ALL = SIGMA | {f"factor_{name}": _log(0.1, 10.0) for name in ("c_1", "c_mu", "c_c", "c_std", "d_std")}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("cma_es", ALL),
    "random": ("random_search", ALL),
    "sigma": ("cma_es", SIGMA),
}


def spec_of(arm: str, quick: bool) -> dict[str, Any]:
    strategy, tunes = ARMS[arm]
    nest = {"population": 8, "generations": 10 if quick else 100, "prior": False, "judged_on": QUERY, "tunes": tunes}
    return {
        "task": "functions",
        "task_options": {"dimension": 10, "instances": 2 if quick else 4},
        "levels": 2,
        "strategy": strategy,
        "population": 8 if quick else 16,
        "generations": 2 if quick else 25,
        "nest": nest,
        # One device: the searches of the table are spread over the cores instead.
        "plan": {"devices": 1},
    }


def search(folder: Path, quick: bool, seed: int, arm: str) -> str:
    """Finish a run; one that is there already is gone on with. Says how it ended."""
    use_host_devices(1)
    keep_compilations()
    import evometa
    from evometa import api
    from evometa.errors import NotFound

    name = f"{arm}-s{seed}"
    try:
        run = evometa.open(folder / name)
        if run.champion is None:
            run = api.resume(run.path)
    except NotFound:
        run = evometa.run(**spec_of(arm, quick), seed=seed, out=folder, name=name)
    assert run.champion is not None
    return f"{name}: validation {run.champion.validation:.3f}, defaults {run.champion.baseline:.3f}"


def on_train(runs: Sequence[Any], seeds: int) -> tuple[Any, Any]:
    """Champions of one arm's runs, and the defaults, on the train functions with fresh keys."""
    import numpy as np

    from evometa import api
    from evometa.comparison import Arm
    from evometa.judging import Judge
    from evometa.keys import Stream

    session = api.reopen(runs[0].path)
    judge = Judge(session.task, session.train, session.plan)
    baseline = session.task.space.encode(session.task.baseline)
    losses = [
        judge.judge(np.stack([run.champion.genome, baseline]), seeds, run.record["seed"], Stream.CHECK, 0).losses(QUERY)
        for run in runs
    ]
    made = np.stack(losses, axis=1)
    numbers = tuple(run.record["seed"] for run in runs)
    domains = tuple(domain.name for domain in session.train)
    tuned, defaults = (Arm(name, numbers, domains, {QUERY: made[i]}) for i, name in enumerate(("tuned", "defaults")))
    return tuned, defaults


def differences(part: str, names: tuple[str, str], arm: Any, rival: Any) -> Iterator[dict[str, Any]]:
    """One row over all domains, one per family."""
    import numpy as np

    from evometa.comparison import compare_arms

    family = {name: name.rpartition("_")[0] for name in arm.domains}
    for what in ("all families", *dict.fromkeys(family.values())):
        columns = [i for i, name in enumerate(arm.domains) if what in ("all families", family[name])]
        cut = [
            one._replace(
                domains=tuple(one.domains[i] for i in columns), losses={QUERY: one.losses[QUERY][:, np.array(columns)]}
            )
            for one in (arm, rival)
        ]
        groups = family if what == "all families" else None
        found = compare_arms(cut[0], cut[1], QUERY, groups=groups)
        wide = found.families
        yield {
            "part": part,
            "arm": names[0],
            "rival": names[1],
            "what": what,
            "value": found.difference.difference,
            "low": found.difference.low,
            "high": found.difference.high,
            "p": found.difference.p_value,
            "families_low": wide.low if wide else "",
            "families_high": wide.high if wide else "",
            "wins": f"{found.wins} of {len(columns)}",
            "unit": f"{found.difference.unit}; {len(arm.seeds)} x {len(columns)}",
        }


def hyperparameters(arm: str, runs: Sequence[Any]) -> Iterator[dict[str, Any]]:
    from statistics import median

    for name in ARMS[arm][1]:
        found = [run.params["strategy"][name] for run in runs]
        count = f"median, least and largest of {len(found)} search seeds"
        yield {
            "part": "hyperparameter",
            "arm": arm,
            "what": name,
            "value": median(found),
            "low": min(found),
            "high": max(found),
            "unit": count,
        }


def levels_of(arm: str, loaded: Any) -> Iterator[dict[str, Any]]:
    """Mean losses on the test functions."""
    for name, label in ((arm, arm), ("baseline", f"defaults beside {arm}")):
        losses = loaded.arms[name].losses[QUERY]
        yield {"part": "test loss", "arm": label, "what": "all families", "value": float(losses.mean()), "unit": "mean"}


def table(runs: Mapping[str, Sequence[Any]], seeds: int) -> list[dict[str, Any]]:
    from evometa import compare

    rows: list[dict[str, Any]] = []
    for arm, mine in runs.items():
        # Each arm beside its own baseline: other arms' programs round otherwise, and searches amplify that.
        loaded = compare.load([run.path for run in mine], [arm] * len(mine))
        rows += differences("test", (arm, "defaults"), loaded.arms[arm], loaded.arms["baseline"])
        rows += levels_of(arm, loaded)
    everybody = [(arm, run.path) for arm, mine in runs.items() for run in mine]
    loaded = compare.load([path for _, path in everybody], [arm for arm, _ in everybody])
    for rival in [name for name in runs if name != "all"]:
        rows += differences("test", ("all", rival), loaded.arms["all"], loaded.arms[rival])
    for arm, mine in runs.items():
        rows += differences("train", (arm, "defaults"), *on_train(mine, seeds))
        rows += hyperparameters(arm, mine)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    use_host_devices(1)
    keep_compilations()
    import evometa
    from evometa import api
    from evometa.unseal import FEWEST_SEEDS, unseal_many

    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.runs or Path(temporary)
        seeds = range(2 if arguments.quick else arguments.seeds)
        wanted = [(seed, arm) for seed in seeds for arm in ARMS]
        with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:
            for said in pool.map(partial(search, folder, arguments.quick), *zip(*wanted, strict=True)):
                print(said, flush=True)
        runs = {arm: [evometa.open(folder / f"{arm}-s{seed}") for seed in seeds] for arm in ARMS}
        unseal_many([run.path for mine in runs.values() for run in mine], api.reopen, FEWEST_SEEDS)
        rows = table(runs, FEWEST_SEEDS)
    save(arguments.out, rows, FIELDS)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
