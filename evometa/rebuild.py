"""What a worker makes of its order: the same task, data and program as in the process that ordered.

The order is plain data (see placement.py), so a worker may be of another machine. What the digests in it say
differs is refused: a file that was edited while a run goes on, other data, other libraries, another processor.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evometa.backends.unit import run_unit
from evometa.backends.worker import Answers, Say
from evometa.contract import Task
from evometa.errors import ResumeMismatch
from evometa.evaluate import data as datasets
from evometa.evaluate.data import Loaded
from evometa.fingerprint import without_addresses
from evometa.names import code_digest
from evometa.spec import build as build_spec
from evometa.spec import canonical
from evometa.spec_task import task_of
from evometa.types import Failure

_MESSAGE = 500


def build(order: Mapping[str, Any]) -> Answers:
    """The answers of an order. Raises `ResumeMismatch` where they would be others than those of the run."""
    if Path(order["cwd"]).is_dir():
        os.chdir(order["cwd"])
    jax = order["jax"]
    if jax is not None:
        _use(jax)
    _same(
        "a library's version", order["versions"], {name: importlib.metadata.version(name) for name in order["versions"]}
    )
    if jax is not None:
        from evometa.machine import numerics

        _same("the machine or a setting of JAX", order["machine"], numerics())
    spec = build_spec(json.loads(order["spec"]))
    task = task_of(spec, Path(order["base"]))
    _same("the task's code", order["code"], code_digest(task))
    # Its order too: a genome is numbers without names.
    _same("the space", json.dumps(order["space"]), json.dumps(json.loads(canonical(task.space.to_json()))))
    if jax is None:
        return _Host(task, order)
    return _Compiled(task, order, spec.hurdle.domains if spec.hurdle else None)


def _use(jax: Mapping[str, Any]) -> None:
    """See the machine as the run's own process does: bits depend on it. Before JAX starts."""
    os.environ.update(jax["environment"])
    from jax import config

    for name, value in jax["settings"].items():
        config.update(name, value)


def _same(what: str, ordered: Any, here: Any) -> None:
    if ordered != here:
        raise ResumeMismatch(
            f"a worker would compute other numbers than the run: {what} differs (ordered {ordered}, there {here})."
            " Put it back, then go on with: evometa resume"
        )


class _Host:
    """Units of a Python or command task. Domains are loaded when first needed."""

    def __init__(self, task: Task, order: Mapping[str, Any]) -> None:
        self.task = task
        self._opening = _opening(order)
        self._loaded: dict[str, Loaded] = {}

    def answer(self, head: Mapping[str, Any], body: bytes, say: Say) -> None:
        """One unit after the other."""
        asked, output_mb = head["work"], head["limits"][2]
        genomes = np.frombuffer(body, np.float32).reshape(len(asked["units"]), self.task.space.dimension)
        for place, (domain, _, fit_key, judge_keys) in enumerate(asked["units"]):
            loaded = self._load(domain, asked["data"][domain])
            candidate = self.task.space.decode_host(genomes[place])
            say.begin(place)
            try:
                outcome = run_unit(self.task, candidate, fit_key, judge_keys, loaded, output_mb)
            except KeyboardInterrupt as error:  # the task's own: nobody types Ctrl-C to a worker
                outcome = {"failure": int(Failure.ERROR), "message": f"domain {domain}: {error!r}", "metrics": {}}
            say.done(place, outcome)

    def _load(self, name: str, word: str) -> Loaded:
        if name not in self._loaded:
            (loaded,) = datasets.load(self.task, [name], self._opening)
            _same(f"the data of domain {name}", word, datasets.digest([loaded], Path(self.task.folder)))
            self._loaded[name] = loaded
        return self._loaded[name]


class _Compiled:
    """Chunks of a JAX task's candidates; `hurdle`: how many domains are judged before the rest, if any."""

    def __init__(self, task: Task, order: Mapping[str, Any], hurdle: int | None) -> None:
        from evometa.evaluate.compiled import CompiledCells
        from evometa.evaluate.plan import Plan

        loaded = datasets.load(task, order["domains"], _opening(order))
        _same("the data of the train domains", order["data"], datasets.digest(loaded, Path(task.folder)))
        # One chunk is one device's: it has the same bits whichever, and however many there are beside it.
        plan = Plan(order["plan"]["chunk"], 1, 1, order["plan"]["platform"])
        plan.require()
        parts = [loaded] if hurdle is None else [loaded[:hurdle], loaded[hurdle:]]
        self._stages = [CompiledCells(task, part, plan, task.replicates) for part in parts]
        self._programs: dict[Any, Any] = {}

    def answer(self, head: Mapping[str, Any], body: bytes, say: Say) -> None:
        """All candidates at once."""
        import jax
        import jax.numpy as jnp

        from evometa.backends.chunks import outcomes
        from evometa.keys import cell_keys

        stage = head["work"]["stage"]
        cells, space = self._stages[stage], self._stages[stage].task.space
        genomes = np.frombuffer(body, np.float32).reshape(cells.plan.chunk, space.dimension)
        key = jax.random.wrap_key_data(jnp.asarray(head["work"]["key"], jnp.uint32))
        arguments = (cell_keys(key, cells.names, cells.replicates), jnp.asarray(genomes), cells.data)
        static = space.static_values(genomes[0]) if space.static else None
        word = (stage, *sorted(static.items())) if static else (stage,)
        if word not in self._programs:  # compiled before the time starts
            run = jax.jit(lambda k, g, d: cells.evaluate_keys(k, g, d, static))
            self._programs[word] = run.lower(*arguments).compile()
        say.begin(None)
        try:
            raw = jax.tree.map(np.asarray, self._programs[word](*arguments))
        except jax.errors.JaxRuntimeError as error:
            text = without_addresses(str(error)[: 8 * _MESSAGE])
            full = "RESOURCE_EXHAUSTED" in text
            lines = text.strip().splitlines()
            failure = Failure.OUT_OF_MEMORY if full else Failure.ERROR
            say.failed(failure, lines[-1][:_MESSAGE] if lines and not full else "out of memory")
            return
        for place, outcome in enumerate(outcomes(raw, cells.metrics, len(head["covers"]))):
            say.done(place, outcome)


def _opening(order: Mapping[str, Any]) -> Any:
    """The permission that came with the order, if one did."""
    if order["opening"] is None:
        return None
    from evometa.unseal import handed

    return handed(order["opening"])
