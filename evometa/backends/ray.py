"""A Ray cluster as an engine: works are stateless tasks, Ray retries nothing, and nodes may come and go.

Ray places the tasks, ships them and says which workers and nodes died. What is tried again is counted here and in the
dispatcher, so that it is bounded, and a result that comes twice counts once. See ray_worker.py for the other end.
"""

from __future__ import annotations

import hashlib
import queue
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from evometa import __version__
from evometa.backends import ray_worker
from evometa.backends.dispatch import Ended, Work
from evometa.backends.pool import say
from evometa.backends.ray_cluster import connection
from evometa.backends.wire import ended_of
from evometa.errors import EvometaError
from evometa.types import Failure

_LOOK = 2.0  # seconds between looks at the nodes
_NODES = 3  # nodes that a work may lose before that counts as a lost worker of its own
_HEAD = 15.0  # seconds that the head may be away, where something starts it again; Ray itself gives up after 60
_SILENCE = 600.0  # seconds that a work may take beyond its limit, to be built and compiled, before it is given up


@dataclass
class _Out:
    """A work that is out."""

    work: Work
    task: Any  # Ray's reference to its result
    since: float  # on the engine's clock
    nodes: int = 0  # that it lost


class RayEngine:
    """Workers on every CPU of a cluster (see ray_cluster.py for which), at most `workers` at a time.

    `gpus_per_worker`: what Ray reserves for each and shows it in CUDA_VISIBLE_DEVICES, a fraction where several share
    one; None is one where the plan is for GPUs. `grace`: seconds that a late unit gets to stop by itself. `note` is
    told when a node joins or leaves.
    """

    def __init__(
        self,
        order: Mapping[str, Any],
        workers: int | None = None,
        gpus_per_worker: float | None = None,
        grace: float = 0.5,
        note: Callable[[str], None] | None = None,
    ) -> None:
        told = ray_worker.instructions(order, grace)
        if gpus_per_worker is None and (order.get("plan") or {}).get("platform", "cpu") != "cpu":
            gpus_per_worker = 1
        self._workers, self._gpus = workers, gpus_per_worker or 0
        self._note = note or say
        self._ray = connection.acquire(workers)
        self._open = True
        self._out: dict[int, _Out] = {}
        self._done: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()
        self._nodes: dict[str, tuple[str, int]] = {}  # by Ray's name of it: its host, and how many workers it takes
        self._clock, self._looked = 0.0, time.monotonic()  # seconds during which there was a node
        self._heard = self._looked  # when the head answered last
        try:
            self._digest = hashlib.sha256(told.encode()).hexdigest()
            self._order = [self._ray.put(told)]  # in a list it stays a reference: fetched by whom it is new to
            self._compute = self._ray.remote(
                max_retries=0, num_cpus=1, num_gpus=self._gpus, runtime_env={"env_vars": ray_worker.ENVIRONMENT}
            )(ray_worker.compute)
            self._look(first=True)
        except BaseException:
            self.close()
            raise

    @property
    def slots(self) -> int:
        """How many workers the cluster has room for, at this moment."""
        room = sum(slots for _, slots in self._nodes.values())
        return room if self._workers is None else min(room, self._workers)

    @property
    def capacity(self) -> int:
        """Every worker's own work and one that waits for it; one where there is no node, to show that one is wanted."""
        return max(1, self.slots if self._workers is not None and not connection.local else 2 * self.slots)

    def submit(self, ticket: int, work: Work) -> None:
        """Take a work."""
        self._out[ticket] = _Out(work, None, self._clock)
        self._send(ticket)

    def wait(self, timeout: float | None) -> list[Ended]:
        """Works that ended; waits for one at least, or for `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        found: list[Ended] = []
        while self._out and not found:
            left = _LOOK if end is None else max(0.0, min(_LOOK, end - time.monotonic()))
            # Not `ray.wait`: Ray swallows what a signal's handler raises, and a queue does not.
            with suppress(queue.Empty):
                self._take(self._done.get(timeout=left), found)
                while not self._done.empty():
                    self._take(self._done.get_nowait(), found)
            self._look()
            found += self._silent()
            if end is not None and time.monotonic() >= end:
                break
        return found

    def cancel(self, ticket: int) -> None:
        """Stop a work: its Ray process is killed, and what runs beside that with it."""
        if (out := self._out.pop(ticket, None)) is not None:
            self._ray.cancel(out.task, force=True)

    def close(self) -> None:
        """Stop all works; leave the cluster, or end the local one."""
        if not self._open:
            return
        self._open = False
        for ticket in list(self._out):
            self.cancel(ticket)
        connection.release()

    # --- works -----------------------------------------------------------------------------------

    def _send(self, ticket: int) -> None:
        out = self._out[ticket]
        out.since = self._clock
        task = out.task = self._compute.remote(self._digest, self._order, ticket, out.work)
        task.future().add_done_callback(lambda future: self._done.put((ticket, task, future)))

    def _take(self, one: tuple[int, Any, Any], found: list[Ended]) -> None:
        """What became of a task."""
        ticket, task, future = one
        out = self._out.get(ticket)
        if out is None or out.task != task:
            return  # cancelled, or sent again
        error = future.exception()
        if isinstance(error, self._ray.exceptions.NodeDiedError) and out.nodes < _NODES:
            out.nodes += 1  # no fault of the work's
            self._send(ticket)
            return
        found.append(ended_of(future.result()) if error is None else _ended(ticket, error))
        del self._out[ticket]

    def _silent(self) -> list[Ended]:
        """Works of nodes that are there and say nothing."""
        late = []
        for ticket, out in self._out.items():
            seconds = out.work.limits.seconds
            # Twice: another one of that size may be before it.
            if seconds is not None and self._clock - out.since > 2 * seconds * len(out.work.covers) + _SILENCE:
                late.append(ticket)
        for ticket in late:
            self.cancel(ticket)
        return [Ended(ticket, {}, Failure.WORKER_LOST, message="its node says nothing") for ticket in late]

    # --- nodes -----------------------------------------------------------------------------------

    def _look(self, first: bool = False) -> None:
        """Who is there."""
        passed = time.monotonic() - self._looked
        if passed < _LOOK and not first:
            return
        self._clock += passed if self._nodes else 0.0
        self._looked = time.monotonic()
        if (nodes := self._nodes_now()) is None:
            return
        there = {node["NodeID"]: (_name(node), self._room(node)) for node in nodes if node["Alive"]}
        there = {word: one for word, one in there.items() if one[1]}
        joined = {word: one for word, one in there.items() if word not in self._nodes}
        left = {word: one for word, one in self._nodes.items() if word not in there}
        self._nodes = there
        if first:
            hosts = f"{len(there)} node{'s' * (len(there) != 1)}, {self.slots} worker{'s' * (self.slots != 1)}"
            self._note(f"ray: {hosts}" if there else "ray: no node has room for a worker yet; waiting for one")
            return
        for verb, words in (("joined", joined), ("left", left)):
            for name, slots in words.values():
                self._note(f"ray: {name} {verb} ({slots} worker{'s' * (slots != 1)}); {self.slots} in all")

    def _nodes_now(self) -> Any:
        """What the head says of the nodes; None where it says nothing and there is hope."""
        why: Exception | None = None
        if connection.answers():
            try:
                nodes = self._ray.nodes()
                self._heard = time.monotonic()
                return nodes
            except Exception as error:
                why = error
        if why is None and time.monotonic() - self._heard < _HEAD:
            return None
        raise EvometaError(
            "the head of the Ray cluster does not answer any more. What is finished is kept: go on, also on another"
            " cluster, with: evometa resume RUN --backend ray"
        ) from why

    def _room(self, node: Mapping[str, Any]) -> int:
        resources = node.get("Resources", {})
        room = int(resources.get("CPU", 0))
        return min(room, int(resources.get("GPU", 0) / self._gpus)) if self._gpus else room


def _name(node: Mapping[str, Any]) -> str:
    return f"node {node['NodeID'][:8]} on {node['NodeManagerHostname']}"


def _ended(ticket: int, error: BaseException) -> Ended:
    """What a task that brought nothing home means."""
    from ray import exceptions

    if isinstance(error, exceptions.NodeDiedError):
        why = "its node was lost"
    elif isinstance(error, exceptions.OutOfMemoryError):
        why = "its node ran out of memory"
    elif isinstance(error, exceptions.RayTaskError) or not isinstance(error, exceptions.RayError):
        return Ended(ticket, {}, refusal=_refusal(error))
    else:
        why = "its Ray process ended"
    return Ended(ticket, {}, Failure.WORKER_LOST, message=why)


def _refusal(error: BaseException) -> EvometaError:
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, EvometaError):
        return cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return EvometaError(
        f"a node of the Ray cluster cannot compute: {type(cause).__name__}: {(lines or [''])[-1][:300]}. Every node"
        f" needs the same installation: pip install 'evometa[ray]=={__version__}'"
    )
