"""The real runs of calibration.py: champions of many search seeds, what they promise, and searches for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from evometa.statistics import Floats, Interval, crossed, equivalent, over_seeds

MARGINS = {
    "promise": 0.01,  # of the baseline's mean loss: a promise this close is kept
    "noise": 0.1,  # standard deviations of one cell's noise: a gain this small is none
    "placebo": 0.01,  # of the baseline's mean loss: a placebo that gains less has found nothing
}
KEPT = ["setting", "what", "unit", "mean", "low", "high", "margin", "claim", "holds", "runs"]

LADDER = {"languages": 4, "support": 600, "query": 150}
NEURAL = {**LADDER, "steps": 60, "hidden": 16, "batch": 32}
SMALL = {"generations": 6, "population": 8}
DIGITS = {"steps": 20, "hidden": 8, "support": 128, "query": 64}
# group of runs -> the spec that all its search seeds share
SPECS: dict[str, dict[str, Any]] = {
    "n-gram": {"task": "ladder", "task_options": {**LADDER, "learner": "ngram"}, **SMALL},
    "n-gram-home": {"task": "ladder", "task_options": {**LADDER, "learner": "ngram"}, "objective": "home", **SMALL},
    "network": {"task": "ladder", "task_options": NEURAL, **SMALL},
    "digits": {"task": "digits", "task_options": DIGITS, **SMALL},
    "digits-placebo": {"task": "digits", "task_options": DIGITS, "placebo": True, **SMALL},
    "network-placebo": {"task": "ladder", "task_options": NEURAL, "placebo": True, **SMALL},
    "noise": {"task": "benchmarks.calibration_runs:noise_task", **SMALL},
}


def champions(group: str, searches: int, runs: Path) -> list[Path]:
    """Runs of search seeds 0, 1 ... carried to their end; those that are there already are taken."""
    import jax

    from evometa import api

    paths = [runs / group / f"s{seed}" for seed in range(searches)]
    for seed, path in enumerate(paths):
        if not (path / "run.json").is_file():
            api.run(**SPECS[group], seed=seed, out=path.parent, name=path.name)
        elif api.open(path).champion is None:
            api.resume(path)
    jax.clear_caches()  # every run traces its programs anew; their machine code is kept on disk
    print(f"  {group}: {searches} runs", flush=True)
    return paths


def opened(paths: list[Path]) -> Any:
    """The runs' test judgements as arms, opened together if they were not: one look."""
    from evometa import api, compare, unseal
    from evometa.errors import EvometaError

    try:
        return compare.load(paths, ["champions"] * len(paths))
    except EvometaError:  # not opened yet
        unseal.unseal_many(paths, api.reopen)
        return compare.load(paths, ["champions"] * len(paths))


def word_losses(paths: list[Path]) -> tuple[Floats, Floats]:
    """Of the champions on each test language: nats of every `away` word `[L, N, W]`, its characters `[N, W]`."""
    import jax
    import jax.numpy as jnp

    from evometa import api

    runs = [api.open(path) for path in paths]
    task = api.reopen(paths[0]).task
    genomes = np.stack([run.champion.genome for run in runs if run.champion is not None])
    nats, characters = [], []
    for name in task.split.test:  # opened, and recorded, when these runs were unsealed
        domain = task.domain(name)
        support, query = domain.support(), domain.queries["away"]()
        word = np.cumsum(query["position"] == 0) - 1
        count = int(word[query["weight"] > 0].max()) + 1
        masks = np.where(word == np.arange(count)[:, None], query["weight"], 0.0).astype(np.float32)

        def of_words(genome: Any, support: Any, query: Any, masks: Any, task: Any = task) -> Any:
            key = jax.random.key(0)  # counting has no luck
            learned = task.fit(key, task.space.decode(genome), support)
            return jax.vmap(lambda mask: task.judge(key, learned, {**query, "weight": mask})["loss"])(masks)

        each = [jax.jit(of_words)(jnp.asarray(g), support, query, masks) for g in genomes]
        characters.append(masks.sum(axis=1)[:100])
        nats.append(np.stack(each)[:, :100] * characters[-1])
    return np.stack(nats, axis=1), np.stack(characters)


# --- promises ---------------------------------------------------------------------------------------------------

FRESH = 20  # inner seeds of the fresh judging


def promises(searches: int, runs: Path) -> Iterator[dict[str, object]]:
    """Promised minus fresh loss over search seeds, in shares of the baseline's loss: below zero is oversold."""
    from evometa import api
    from evometa.judging import Judge
    from evometa.keys import Stream

    for group in ("digits", "network", "n-gram"):
        paths = champions(group, searches, runs)
        first, found = api.reopen(paths[0]), {"champion": [], "lowest validation mean": [], "luckiest fitness": []}
        train, validation, query = Judge(first.task, first.train, first.plan), first.validation(), "away"
        for seed, path in enumerate(paths):
            run = api.open(path)
            best, lucky = run.champion, run.top(1)[0]
            assert best is not None
            table = run.archive.judgements().to_pylist()
            means: dict[tuple[float, ...], list[float]] = {}
            for row in table:
                if row["phase"] == "validation" and row["query"] == query and row["label"] != "baseline":
                    means.setdefault(tuple(row["genome"]), []).append(row["loss"])
            lowest = min(means, key=lambda genome: float(np.mean(means[genome])))
            genomes = np.array([best.genome, lowest, first.task.space.encode(first.task.baseline)], np.float32)
            # A stream and a number that no run uses: keys that nothing has seen.
            fresh = validation.judge(genomes, FRESH, seed, Stream.CHECK, 999).losses(query).mean(axis=(1, 2))
            genomes = np.array([lucky["genome"], genomes[-1]], np.float32)
            again = train.judge(genomes, FRESH, seed, Stream.CHECK, 999).losses(query).mean(axis=(1, 2))
            found["champion"].append((best.validation - fresh[0]) / fresh[-1])
            found["lowest validation mean"].append((np.mean(means[lowest]) - fresh[1]) / fresh[-1])
            found["luckiest fitness"].append((lucky["fitness"] - again[0]) / again[-1])
        for what, values in found.items():
            yield kept(group, f"{what}: promised - fresh", "of baseline loss", over_seeds(values), MARGINS["promise"])


def kept(
    setting: str, what: str, unit: str, told: Interval, margin: float, claim: str = "equivalent"
) -> dict[str, object]:
    """A mean with its 95 % interval, and whether it is `equivalent` to zero within the margin, or `no-better`."""
    numbers = {"mean": told.difference, "low": told.low, "high": told.high}
    shown = {name: f"{value:+.4f}" for name, value in numbers.items()}
    holds = equivalent(told, margin).equivalent if claim == "equivalent" else told.low > -margin
    runs = int(told.note.split()[0]) if told.unit == "search seed x domain" else told.count
    about = {"margin": margin, "claim": claim, "holds": "yes" if holds else "no", "runs": runs}
    return {"setting": setting, "what": what, "unit": unit, **shown, **about}


# --- nothing to find --------------------------------------------------------------------------------------------


def noise_task() -> Any:
    """A loss of 1 + N(0, 1) that no candidate can change; every candidate has noise of its own."""
    import jax
    import jax.numpy as jnp

    import evometa

    names = [f"{role}{n}" for role, count in (("train", 4), ("check", 3), ("sealed", 12)) for n in range(count)]
    task = evometa.task(
        name="noise",
        space={"x": evometa.real(-1, 1), "y": evometa.real(-1, 1)},
        domains={name: {"support": jnp.zeros(()), "away": jnp.zeros(())} for name in names},
        split=evometa.Split(tuple(names[:4]), tuple(names[4:7]), tuple(names[7:])),
    )

    @task.fit
    def fit(key: Any, candidate: Any, support: Any) -> Any:
        return jnp.stack([candidate["x"], candidate["y"]])

    @task.judge
    def judge(key: Any, learned: Any, query: Any) -> Any:
        words = jax.lax.bitcast_convert_type(learned, jnp.uint32) * jnp.asarray([2654435769, 2246822507], jnp.uint32)
        own = jax.random.fold_in(key, jnp.sum(words, dtype=jnp.uint32))
        return {"loss": 1.0 + jax.random.normal(own) + 0.0 * query}

    return task.build()


def noise(searches: int, runs: Path) -> Iterator[dict[str, object]]:
    """Gains on sealed domains where there is nothing to find, and what a less careful report would have said."""
    from evometa import api

    paths = champions("noise", searches, runs)
    bests = [api.open(path).champion for path in paths]
    lucky = [api.open(path).top(1)[0]["fitness"] - 1.0 for path in paths]
    promised = [best.validation - 1.0 for best in bests if best is not None]
    unit, margin = "sd of a cell", MARGINS["noise"]
    yield kept("pure noise", "sealed: champion - baseline", unit, gain(paths), margin)
    yield kept("pure noise", "promised by the champion, the truth being 0", unit, over_seeds(promised), margin)
    yield kept("pure noise", "luckiest fitness, the truth being 0", unit, over_seeds(lucky), margin)
    for group in ("digits-placebo", "digits", "network-placebo", "network"):
        told = gain(champions(group, min(searches, 20), runs), relative=True)
        yield kept(group, "sealed: champion - baseline", "of baseline loss", told, MARGINS["placebo"], "no-better")
    told = walked(2 * searches)
    what = "the same languages: a last candidate - baseline"
    yield kept("network, told random numbers", what, "of baseline loss", told, MARGINS["placebo"], "no-better")


def walked(searches: int) -> Interval:
    """Where a search ends that is told random numbers: its first candidate of the last generation - baseline."""
    import evometa
    from evometa.keys import Stream
    from evometa.session import prepare
    from evometa.spec import build
    from evometa.tasks.parts.words import TEST

    # These languages have been opened by the other searches; nothing of the walk depends on them.
    session = prepare(build({**SPECS["network"], "split": {"train": ["en"], "validation": list(TEST)}}))
    space, start, rng = session.task.space, session.task.baseline, np.random.default_rng(0)
    ends = []
    for seed in range(searches):
        search = evometa.search(space, population=SMALL["population"], seed=seed, start=start)
        for _ in range(SMALL["generations"]):
            asked = search.ask()
            search.tell(rng.normal(size=len(asked.genomes)))
        ends.append(asked.genomes[0])
    genomes = np.stack([*ends, np.asarray(space.encode(start), np.float32)])
    loss = session.validation().judge(genomes, 2, 0, Stream.CHECK, 999).losses("away").mean(axis=2)
    return crossed((loss[:-1] - loss[-1]) / loss[-1].mean())


def gain(paths: list[Path], relative: bool = False) -> Interval:
    """Champion - baseline on the sealed domains, search seeds x domains; in shares of the baseline's mean loss."""
    found = opened(paths)
    champion, baseline = (found.arms[name].losses["away"].mean(axis=2) for name in ("champions", "baseline"))
    return crossed((champion - baseline) / (baseline.mean() if relative else 1.0))
