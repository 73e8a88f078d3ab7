"""What a Ray task does: hand a work to the warm worker beside it, and wait for how that ended.

The candidate never runs in Ray's own process. A warden with one worker (see warden.py) does the work, so that limits,
failures and their messages are those of worker processes; it stays warm for as long as its Ray process lives, and
dies with it. Nothing is kept here that a result depends on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from evometa.backends.dispatch import Work
from evometa.backends.processes import ProcessEngine
from evometa.backends.wire import ended_head

# Ray sets some of these for its tasks. They can change a number, so a worker has them as the run's own process has.
NUMERIC = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "PYTHONHASHSEED",
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "NPROC",
)
ENVIRONMENT = {
    # Ray kills the children of a process that it ends, but not theirs: the warden is to do that, and needs a moment.
    "RAY_kill_child_processes_on_worker_exit": "0",
}
_warm: dict[tuple[str, str | None], ProcessEngine] = {}  # one at the most


def compute(digest: str, order: Sequence[Any], ticket: int, work: Work) -> dict[str, Any]:
    """How the work ended, as JSON (see wire.py).

    `order` holds a reference to what `instructions` made, fetched only where nothing is warm for its digest. Raises
    `EvometaError` where no worker can be started here.
    """
    engine = _engine(digest, order[0])
    try:
        engine.submit(ticket, work)
        while not (found := engine.wait(None)):
            pass
    except BaseException:
        _forget()  # the next work finds nothing of one that is half done
        raise
    return ended_head(found[0])


def instructions(order: Mapping[str, Any], grace: float) -> str:
    """What a node is told once: the order (see worker.py), and what of this process's environment counts.

    Raises `ConfigError` where the order is not JSON.
    """
    environment = {name: os.environ[name] for name in NUMERIC if name in os.environ}
    ProcessEngine(order, 1)  # starts nothing, and says so where an order cannot be sent
    return json.dumps({"order": dict(order), "grace": grace, "environment": environment}, sort_keys=True)


def _engine(digest: str, order: Any) -> ProcessEngine:
    word = (digest, os.environ.get("CUDA_VISIBLE_DEVICES"))  # Ray's choice, for this task
    if word not in _warm:
        import ray

        _forget()
        told = json.loads(ray.get(order))
        for name in NUMERIC:
            os.environ.pop(name, None)
        os.environ.update(told["environment"])
        _warm[word] = ProcessEngine(told["order"], 1, grace=told["grace"])
    return _warm[word]


def _forget() -> None:
    while _warm:
        _warm.popitem()[1].close()
