"""Where a run is computed: in this process, in worker processes, on a cluster. No part of what the run is."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from evometa.archives import events
from evometa.backends.dispatch import Engine, Limits
from evometa.contract import Task
from evometa.errors import ConfigError, UsageError, did_you_mean
from evometa.evaluate.plan import Plan
from evometa.machine import cores
from evometa.spec import PLACES, Spec

IN_MEMORY = "evometa_in_memory:"
# Seconds that a late unit gets to stop by itself: a Python cell rings its own bell, a command is killed by its worker.
_GRACE = {"python": 0.5, "command": 5.0, "jax": 0.0}


class Placement(NamedTuple):
    """`workers` and `gpus_per_worker` as they were asked for; None is the engine's default."""

    backend: str
    workers: int | None = None
    gpus_per_worker: float | None = None

    def said(self) -> dict[str, Any]:
        """What the run's diary says of it."""
        return {key: value for key, value in self._asdict().items() if value is not None}


def place(spec: Spec, task: Task) -> Placement:
    """Where a spec's run is computed.

    What the spec says; where it says nothing: in worker processes if the task is plain Python (a candidate that hangs
    or crashes then takes nobody with it, and every core has work), or if the spec asks for workers or for limits that
    need them; else in this process, where JAX compiles once, and where a task lives that was never in a file.
    Raises `ConfigError` for what does not go together.
    """
    limits, in_memory = spec.limits, isinstance(spec.task, str) and spec.task.startswith(IN_MEMORY)
    beyond = [name for name in ("memory_mb", "output_mb") if getattr(limits, name) is not None]
    beyond += ["seconds"] if limits.seconds is not None and task.runs == "jax" else []
    asked = spec.workers is not None or spec.gpus_per_worker is not None
    backend = spec.backend
    if backend is None:
        apart = task.runs == "python" and not in_memory
        backend = "processes" if asked or beyond or apart else "inline"
    if backend == "inline" and asked:
        raise ConfigError("workers: the inline backend has none. Say --backend processes, or leave --workers out")
    if backend == "inline" and beyond:
        raise ConfigError(f"limits.{beyond[0]}: only worker processes can be limited so. Say --backend processes")
    if backend != "inline" and in_memory:
        raise ConfigError(
            f"task {task.name!r} lives in this process's memory only, so workers cannot make it again. Put it into a"
            ' file and give that: evometa.run("file.py", ...)'
        )
    if limits.memory_mb is not None and backend == "processes":
        from evometa.backends.process_tree import can_measure

        if not can_measure():
            raise ConfigError("limits.memory_mb: memory cannot be measured here (no /proc). Leave it out")
    return Placement(backend, spec.workers, spec.gpus_per_worker)


def places(path: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Where a run on disk is to be computed: as asked, and for the rest as before, on the same backend."""
    asked = {name: value for name, value in asked.items() if value is not None}
    for name in asked:
        if name not in PLACES:
            raise UsageError(f"resume: expected {', '.join(PLACES)}, got {name!r}.{did_you_mean(name, PLACES)}")
    begun = [event for event in events.diary(path) if event["kind"] in ("started", "resumed")]
    before: dict[str, Any] = {name: begun[-1].get(name) if begun else None for name in PLACES}
    if asked.get("backend", before["backend"]) != before["backend"] or (asked and before["backend"] == "inline"):
        before = dict.fromkeys(PLACES)
    return {**before, **asked}


def limits_of(spec: Spec, task: Task) -> Limits:
    """The limits of one unit: the spec's, with the task's own time limit where the spec has none."""
    return Limits(spec.limits.seconds or task.time_limit, spec.limits.memory_mb, spec.limits.output_mb)


def order_of(
    spec: Spec, task: Task, base: Path, plan: Plan, identity: Mapping[str, Any], opening: int | None
) -> dict[str, Any]:
    """What workers are told: plain data, from which `rebuild.build` makes the same task again."""
    jax = _jax_here(plan) if task.runs == "jax" else None
    try:
        # As a text: it keeps the order of its keys, and with them a space's columns theirs, whoever hands it on.
        text = json.dumps(spec.model_dump(exclude={"generations", "name", *PLACES}))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"workers are told what to do in JSON, and the spec holds something else: {error}. Give options as numbers,"
            " texts, lists and tables, or say --backend inline"
        ) from None
    return {
        "builder": "evometa.rebuild:build",
        "spec": text,
        "base": str(base.absolute()),
        "cwd": str(Path.cwd()),
        "code": identity["task"]["code"],
        "space": identity["task"]["space"],
        "versions": {name: word for name, word in identity["versions"].items() if name != "python"},
        "machine": identity["machine"],
        "jax": jax,
        "plan": plan.to_json(),
        "domains": list(task.split.train),
        "data": identity["data"],
        "opening": opening,
    }


def _jax_here(plan: Plan) -> dict[str, Any]:
    """How JAX sees this machine, for workers that must see it alike."""
    import jax

    names = ["jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl"]
    settings = {name: getattr(jax.config, name) for name in names}
    if plan.platform == "cpu":
        settings["jax_num_cpu_devices"] = len(jax.devices())
    cache = getattr(jax.config, "jax_compilation_cache_dir", None)
    if cache:
        # Everything is kept: the next worker, and the next run, starts warm.
        settings |= {
            "jax_compilation_cache_dir": cache,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": 0,
        }
    environment = {name: os.environ[name] for name in ("NPROC", "XLA_FLAGS") if name in os.environ}
    if plan.platform != "cpu":  # several processes on one card: none may take most of it from the start
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return {"settings": settings, "environment": environment}


def open_engine(
    placement: Placement, order: Mapping[str, Any], runs: str, note: Callable[[str], None] | None = None
) -> Engine:
    """The engine of a placement; its workers are not started yet. `note` is told when a node of it comes or goes."""
    if placement.backend == "ray":
        try:
            ray = importlib.import_module("evometa.backends.ray")
        except ModuleNotFoundError as error:
            raise ConfigError("the ray backend is not installed. Type: pip install 'evometa[ray]'") from error
        return ray.RayEngine(order, placement.workers, placement.gpus_per_worker, _GRACE[runs], note)
    from evometa.backends.processes import ProcessEngine, most_workers, visible_gpus

    each, workers = placement.gpus_per_worker, placement.workers
    if workers is None:
        workers = cores() if not each else min(cores(), most_workers(each, visible_gpus()))
    return ProcessEngine(order, workers, each, _GRACE[runs])
