"""Agents that write programs, and how they go about it: the searcher is what is searched.

An agent is two programs. On a problem (a function of lists, shown as five examples) it starts from its *solver
program* and lives for a bounded number of trial programs; its *mutation program* says what is tried
(parts/lifetime.py). The best program of the lifetime is judged on pairs that were not shown: drawn alike (`home`) and
from a wider range (`away`). An agent with a better mutation program is a better improver, of whatever it starts from.

15 problems are train, 15 validation. Sealed are 20 harder ones, whose known programs have three to five instructions
in the place of one to three, and 15 of a second dialect: other operations, one register of scratch (tag `dialect`).
There, what the solver program says in words that the dialect lacks is lost.

Loss: the share of held-out pairs that the program gets wrong. Metrics: `solved` (1 where all are right),
`support_loss` (the error on what was shown, by which a lifetime accepts), `length` (instructions).

Source: Darwin Goedel Machine (Zhang et al. 2025, arXiv 2505.22954), whose agents rewrite their own code with a language
model; here the code is two small programs, and nothing is executed that is not in a table.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from evometa.column import program
from evometa.contract import Domain, Objective, Split, Task
from evometa.errors import ConfigError, did_you_mean
from evometa.programs.code import Code, check, tables
from evometa.programs.interpret import prepare
from evometa.programs.vocabulary import Vocabulary
from evometa.space import Candidate, Space
from evometa.tasks.parts import problems
from evometa.tasks.parts.lifetime import BREEDING, MUTATION, live
from evometa.tasks.parts.synthesis import DIALECTS, LISTS, pack, run, translate

EVOLVES = ("both", "solver", "mutation")
# Agents by hand: a solver program and a mutation program, both as listings; an empty one is no instruction.
AGENTS: dict[str, tuple[str, str]] = {
    "seed": ("", ""),  # every choice weighs the same, one edit at a time, nothing worse is accepted
    # Values worth having lie in the scratch; edits insert rather than delete, two at a time, and write `out`.
    "by_hand": (
        "p = mul(x, y); q = reverse(x)",
        "c0 = 2.0; c1 = 3.0; c2 = 1.0; u = mul(targets, place); u = mul(u, c0); v = mul(kinds, place); v = mul(v, c1);"
        " weight = sub(u, v); more = copy(c2)",
    ),
}
PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"task": {"rounds": 4, "trials": 4}, "generations": 2, "population": 8, "strategy": "open_ended"},
    "standard": {"task": {}, "generations": 80, "population": 64, "strategy": "open_ended"},
    "full": {"task": {}, "generations": 400, "population": 64, "strategy": "open_ended"},
}


def dsl_godel(
    *, agent: str = "seed", evolves: str = "both", breeds: bool = False, rounds: int = 32, trials: int = 24
) -> Task:
    """Agents that synthesize programs as a task.

    `agent`: the baseline, `seed` (two empty programs) or `by_hand`. `evolves`: what is searched; the other program is
    held as the baseline has it (`solver`: no self-modification). `breeds`: mutation programs are written in `BREEDING`,
    which adds outputs that the strategy `open_ended` reads: the program that edits trial programs then also decides
    how its agent's children are made. A lifetime is `rounds` times `trials` programs. Raises `ConfigError` for
    unknown words and sizes out of range.
    """
    _check(agent, evolves, breeds, rounds=rounds, trials=trials)
    words = BREEDING if breeds else MUTATION
    start = {"solver": coded(LISTS, AGENTS[agent][0]), "mutation": coded(words, AGENTS[agent][1])}
    space = Space({"solver": program(LISTS), "mutation": program(words)})
    if evolves != "both":
        held = "mutation" if evolves == "solver" else "solver"
        space = space.hold({held: start[held]})
    split = Split(tuple(problems.TRAIN), tuple(problems.VALIDATION), (*problems.TEST, *problems.DIALECT))
    return Task(
        name="dsl_godel",
        space=space,
        domains=tuple(_domain(name) for name in problems.PROBLEMS),
        fit=partial(fit, rounds=rounds, trials=trials, **({"words": words} if breeds else {})),
        judge=judge,
        objective=Objective("away"),
        baseline=start,
        split=split,
        controls={
            "fixed-mutation": {"evolves": "solver"},
            "fixed-solver": {"evolves": "mutation"},
            "by-hand": {"agent": "by_hand"},
        },
        source=__name__,
    )


def fit(
    key: Any, candidate: Candidate, support: Any, *, rounds: int, trials: int, words: Vocabulary = MUTATION
) -> dict[str, Any]:
    """One lifetime on the examples shown: `{"program": {dialect: [length, 5]}, "error": []}`.

    `words`: what the candidate's mutation program is written in.
    """
    (dialect, shown), *_ = support.items()
    vocabulary = DIALECTS[dialect]
    tokens = jnp.asarray(candidate["solver"].tokens, jnp.int32)
    refused = jnp.any(check(LISTS, tokens, jnp) > 0)
    tokens = jnp.where(refused, 0, tokens)
    if vocabulary is not LISTS:
        tokens = translate(LISTS, vocabulary, tokens, tables(LISTS).arity)
    start, _ = pack(tokens, tokens[:, 0] > 0)
    mutation = prepare(words, candidate["mutation"])
    found, error = live(vocabulary, key, start, mutation, shown, rounds, trials, words)
    # An agent that is no two programs fails, as a rule that is no program does.
    return {"program": {dialect: found}, "error": jnp.where(refused | mutation.refused, jnp.nan, error)}


def judge(key: Any, learned: dict[str, Any], query: dict[str, Any]) -> dict[str, Any]:
    """`loss`, `solved`, `support_loss` and `length` (see above) on pairs that the lifetime did not see."""
    del key
    (dialect, found), *_ = learned["program"].items()
    wrong = jnp.any(run(DIALECTS[dialect], found, query["x"], query["y"]) != query["out"], axis=1)
    broken = jnp.where(jnp.isnan(learned["error"]), jnp.nan, 0.0)
    return {
        "loss": jnp.mean(wrong) + broken,
        "solved": 1.0 - jnp.any(wrong) + broken,
        "support_loss": learned["error"],
        "length": jnp.sum(found[:, 0] > 0).astype(jnp.float32),
    }


def _domain(name: str) -> Domain:
    made = problems.PROBLEMS[name]
    dialect = "terse" if name in problems.DIALECT else "lists"
    level = "hard" if name in problems.TEST else "plain"
    tags = {"family": made.family, "dialect": dialect, "level": level, "steps": str(made.steps)}
    sealed = name in problems.TEST or name in problems.DIALECT
    # Functions, not arrays: a sealed problem has no examples before it is opened. The dialect is a name in the tree, so
    # that problems of different dialects are compiled apart.
    queries = {part: partial(problems.examples, name, part) for part in ("home", "away")}
    return Domain(name, lambda: {dialect: problems.examples(name, "shown")}, queries, tags, sealed)


def coded(vocabulary: Vocabulary, lines: str) -> Code:
    """A program from its listing, instructions separated by `;`; an empty one from none."""
    if not lines:
        return Code(np.zeros((vocabulary.length, 5), np.int32), np.zeros(vocabulary.constants, np.float32))
    from evometa.programs.code import assemble
    from evometa.programs.listing import parse

    return assemble(parse(vocabulary, lines.replace("; ", "\n")))


def _check(agent: Any, evolves: Any, breeds: Any, **sizes: Any) -> None:
    for label, word, words in (("agent", agent, tuple(AGENTS)), ("evolves", evolves, EVOLVES)):
        if word not in words:
            hint = did_you_mean(str(word), words)
            raise ConfigError(f"dsl_godel: expected {label} out of {', '.join(words)}; got {word!r}.{hint}")
    if not isinstance(breeds, bool):
        raise ConfigError(f"dsl_godel: expected breeds to be true or false, got {breeds!r}")
    for label, number in sizes.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"dsl_godel: expected {label} as a whole number >= 1, got {number!r}")
