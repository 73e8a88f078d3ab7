"""Small tables of a finished study of losses, and of known and found losses in networks, for docs/rl_loss_graph.md.

    evometa study studies/rl_loss_graph.toml --profile standard
    python benchmarks/rl_loss.py runs/rl-loss-graph-standard
    python benchmarks/rl_loss.py runs/rl-loss-graph-standard --network
    python benchmarks/rl_loss.py --scratch runs/scratch-*
    python benchmarks/rl_loss.py --landscape

Writes benchmarks/results/rl_loss-searches.csv (one row per run: how many losses it tried and how fast, the champion's
formula, whether it is the TD error, and after how many losses one was first tried), -sealed.csv (every arm by kind
of experience, with its difference from tuned TD and the interval) and, with `--network`, -network.csv (the champions of
`gp-scratch` and `gp-td` and three known losses as networks on environments of gymnax, each at the best of five step
sizes on the train environments). `--scratch` writes -scratch.csv: the first table, for runs that belong to no study.
`--landscape` needs no run: it writes -landscape.csv (losses on the way from nothing to the TD error, at each of six
step sizes: the mean over train domains and six keys, its standard deviation over the keys, and each domain's mean).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.finished import against, arguments_of, by_kind, opened
from benchmarks.tables import save

QUERY = "greedy"
RIVAL = "td"
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # of networks
STEPS = (0.03, 0.06, 0.12, 0.25, 0.5, 0.9)  # step sizes of tables
KEYS = 6
SIZES = ((8, 40), (4, 80))  # instances, steps
WAY = {
    "-q reward": "x = mul(q, reward)\nloss = neg(x)",
    "(q - reward)^2": "x = sub(q, reward)\nloss = square(x)",
    "(q - reward - next_max)^2": "x = sub(q, reward)\nx = sub(x, next_max)\nloss = square(x)",
    "q (q - reward - next_max)": "x = sub(q, reward)\nx = sub(x, next_max)\nloss = mul(q, x)",
    "(2 q - reward - next_max)^2": "x = mul(q, 2)\nx = sub(x, reward)\nx = sub(x, next_max)\nloss = square(x)",
    "(1.5 q - reward - next_max)^2": "x = mul(q, 1.5)\nx = sub(x, reward)\nx = sub(x, next_max)\nloss = square(x)",
    "(1.5 q - reward - discount next_max)^2": (
        "x = mul(q, 1.5)\nx = sub(x, reward)\ny = mul(discount, next_max)\nx = sub(x, y)\nloss = square(x)"
    ),
    "q (q - reward - discount next_max)": (
        "x = sub(q, reward)\ny = mul(discount, next_max)\nx = sub(x, y)\nloss = mul(q, x)"
    ),
    "(q - discount (reward + next_max))^2": (
        "x = add(next_max, reward)\nx = mul(discount, x)\nx = sub(q, x)\nloss = square(x)"
    ),
    "(q - reward - discount next_max)^2": (
        "x = mul(discount, next_max)\nx = add(x, reward)\nx = sub(q, x)\nloss = square(x)"
    ),
}


def searches(study: Path, runs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row per run."""
    import evometa

    for row in runs:
        run = evometa.open(study / row["judged"])
        yield {"arm": row["arm"], "seed": row["seed"], **searched(run)}


def searched(run: Any) -> dict[str, Any]:
    """What one search came to, and whether it tried the TD error."""
    from evometa.folder import read_record
    from evometa.programs.code import assemble, split
    from evometa.programs.known import known
    from evometa.programs.vocabularies import LOSS
    from evometa.tasks.rl_loss import is_double_td, is_td

    assert run.champion is not None
    # An arm whose program is held searches the step size alone: its rule stands among the task's options.
    held = read_record(run.path)["spec"]["task_options"].get("rule")
    rule = assemble(known(LOSS, held)) if held else run.params["rule"]
    seconds = float(np.sum(run.archive.timings()["seconds"].to_numpy()))
    table = run.archive.table(["text", "genome"])
    lines = table["text"].to_pylist()
    first: dict[Any, str] = {is_td: "", is_double_td: ""}
    seen = {None, ""}  # equal formulas are equal programs
    for place, line in enumerate(lines):
        if line in seen:
            continue
        seen.add(line)
        numbers = np.asarray(table["genome"][place].as_py(), np.float32)
        code = split(LOSS, numbers[: LOSS.size])
        first = {test: found or (str(place + 1) if test(code) else "") for test, found in first.items()}
        if first[is_td] and first[is_double_td]:
            break
    return {
        "losses_tried": table.num_rows,
        "per_second": table.num_rows / seconds if seconds else 0.0,
        "validation": float(run.champion.validation),
        "td": is_td(rule),
        "double_td": is_double_td(rule),
        "first_td": first[is_td],
        "first_double_td": first[is_double_td],
        "lr": float(run.params["lr"]),
        "loss": _text(rule),
    }


def _text(code: Any) -> str:
    from evometa.programs.formula import text_of
    from evometa.programs.vocabularies import LOSS

    return text_of(LOSS, code).replace("\n", "; ")


def sealed(task: Any, arms: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per arm and kind of experience."""
    tags = {name: task.domain(name).tags for name in next(iter(arms.values())).domains}
    family = {name: tag["family"] for name, tag in tags.items()}
    kind_of = {name: tag["experience"] for name, tag in tags.items()}
    for kind, domains, cut in by_kind(arms, kind_of, QUERY):
        for name, arm in cut.items():
            row = {"experience": kind, "arm": name, "loss": float(arm.losses[QUERY].mean()), "domains": domains}
            yield row if name == RIVAL else row | against(arm, cut[RIVAL], QUERY, family)


def network(rules: Mapping[str, Any], seeds: int, env_steps: int) -> Iterator[dict[str, Any]]:
    """One row per rule and environment: mean loss and return over `seeds` trainings at the step size chosen for it."""
    import jax
    import jax.numpy as jnp

    from evometa.evaluate.cell import train_and_judge
    from evometa.tasks.rl_loss import rl_loss_graph

    task = rl_loss_graph(agent="network", env_steps=env_steps)
    genomes = jnp.stack(
        [jnp.asarray(task.space.encode({"rule": code, "lr": rate})) for code in rules.values() for rate in RATES]
    )
    found: dict[str, Any] = {}
    for name in (name for role in ("train", "validation", "test") for name in getattr(task.split, role)):
        place = task.domain(name)

        def one(genome: Any, key: Any, place: Any = place) -> Any:
            return train_and_judge(task, task.space.decode(genome), key, place.support, place.queries)[QUERY]

        keys = jax.random.split(jax.random.key(2021), seeds)
        made = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(genomes, keys)
        found[name] = {k: np.asarray(v).reshape(len(rules), len(RATES), seeds) for k, v in made.items()}
        print(name, file=sys.stderr)
    on_train = np.mean([found[name]["loss"].mean(axis=2) for name in task.split.train], axis=0)
    chosen = np.argmin(np.where(np.isfinite(on_train), on_train, np.inf), axis=1)
    for i, rule in enumerate(rules):
        for name in found:
            loss, gained = (found[name][key][i, chosen[i]] for key in ("loss", "gained"))
            yield {
                "rule": rule,
                "lr": RATES[chosen[i]],
                "environment": name,
                "role": task.split.role(name),
                "loss": float(loss.mean()),
                "error": float(loss.std(ddof=1) / seeds**0.5),
                "return": float(gained.mean()),
            }


def landscape() -> Iterator[dict[str, Any]]:
    """One row per size, loss and step size."""
    import jax
    import jax.numpy as jnp

    from evometa.evaluate.cell import train_and_judge
    from evometa.programs.listing import parse
    from evometa.programs.vocabularies import LOSS
    from evometa.tasks.rl_loss import TRAIN, rl_loss_graph

    for instances, steps in SIZES:
        task = rl_loss_graph(instances=instances, steps=steps)
        data = [(task.domain(name).support(), task.domain(name).queries[QUERY]()) for name in TRAIN]
        supports, queries = jax.tree.map(lambda *arrays: jnp.stack(arrays), *data)

        def one(genome: Any, key: Any, support: Any, query: Any, task: Any = task) -> Any:
            return train_and_judge(task, task.space.decode(genome), key, support, {QUERY: query})[QUERY]["loss"]

        made = jax.jit(jax.vmap(jax.vmap(one, (None, 0, 0, 0)), (0, None, None, None)))
        ways = [(text, lr, {"rule": parse(LOSS, code), "lr": lr}) for text, code in WAY.items() for lr in STEPS]
        genomes = np.stack([task.space.encode(candidate) for _, _, candidate in ways])
        keys = [jax.random.split(jax.random.key(number), len(TRAIN)) for number in range(KEYS)]
        found = np.stack([np.asarray(made(genomes, own, supports, queries), np.float64) for own in keys])  # [K, N, D]
        for at, (text, lr, _) in enumerate(ways):
            row = {"instances": instances, "steps": steps, "loss": text, "lr": lr, "train": float(found[:, at].mean())}
            row["deviation"] = float(found[:, at].mean(axis=1).std(ddof=1))
            yield row | {name: float(found[:, at, number].mean()) for number, name in enumerate(TRAIN)}


def champions(study: Path, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The best champion by validation of each searching arm, beside the known rules."""
    import evometa
    from evometa.programs.code import assemble
    from evometa.programs.known import known
    from evometa.programs.vocabularies import LOSS

    found = {name: assemble(known(LOSS, name)) for name in ("td", "double_td", "dqn_reg")}
    for arm in ("gp-scratch", "gp-td"):
        opened = [evometa.open(study / row["judged"]) for row in runs if row["arm"] == arm]
        best = min(opened, key=lambda run: run.champion.validation)
        found[f"{arm}: {_text(best.params['rule'])}"] = best.params["rule"]
    return found


def main() -> None:
    """Collect the study named on the command line."""
    parser = arguments_of(__doc__)
    parser.add_argument("--network", action="store_true", help="train networks with the champions too")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--env-steps", type=int, default=10_000)
    parser.add_argument("--scratch", type=Path, nargs="+", help="runs that began at nothing")
    parser.add_argument("--landscape", action="store_true", help="known losses at fixed step sizes")
    arguments = parser.parse_args()
    if arguments.landscape:
        save(arguments.out / "rl_loss-landscape.csv", list(landscape()))
        return
    if arguments.scratch:
        import evometa

        found = [(path.name, evometa.open(path)) for path in arguments.scratch]
        save(arguments.out / "rl_loss-scratch.csv", [{"run": name, **searched(run)} for name, run in found])
        return
    if arguments.study is None:
        print("nothing to collect: name the folder of a finished study")
        return
    task, arms, runs = opened(arguments.study)
    if arguments.network:
        rows = list(network(champions(arguments.study, runs), arguments.seeds, arguments.env_steps))
        save(arguments.out / "rl_loss-network.csv", rows)
        return
    rows = list(sealed(task, arms))
    fields = list(dict.fromkeys(key for row in rows for key in row))
    save(arguments.out / "rl_loss-sealed.csv", rows, fields)
    save(arguments.out / "rl_loss-searches.csv", list(searches(arguments.study, runs)))


if __name__ == "__main__":
    main()
