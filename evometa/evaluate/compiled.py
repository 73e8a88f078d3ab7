"""JAX tasks: candidates x domains x replicates as one compiled program, in chunks of a fixed size.

The bits of a candidate change with the batch it is computed in, so every candidate is computed in a chunk
of exactly `plan.chunk`, whichever device and position it falls on. Chunks are spread over the host devices
and every device receives all results before anything reads them: what follows is then computed alike
everywhere (design: the determinism contract).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from evometa.contract import Task
from evometa.errors import ConfigError, EvometaError, how_to_install
from evometa.evaluate.cell import train_and_judge
from evometa.evaluate.cost import Cost, cost
from evometa.evaluate.data import Loaded
from evometa.evaluate.plan import Plan
from evometa.evaluate.settle import Raw
from evometa.keys import cell_keys
from evometa.types import Cell, Failure

AXIS = "candidates"
Data = tuple[tuple[Any, dict[str, Any]], ...]  # per group of equal shapes: stacked supports, stacked queries


class CompiledCells:
    """The cells of some domains of a JAX task.

    `evaluate(key, genomes, data)` is traceable and takes any number of candidates; `data` is the stacked
    domain data, handed over as an argument so that it is not compiled into the program as a constant.
    """

    def __init__(self, task: Task, loaded: Sequence[Loaded], plan: Plan, replicates: int) -> None:
        self.task, self.plan, self.replicates = task, plan, replicates
        self.names = tuple(domain.name for domain in loaded)
        self.cells = layout(task, loaded, replicates)
        arrays = [_as_arrays(task, domain) for domain in loaded]
        signatures = [str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), a)) for a in arrays]
        self.groups = [
            tuple(i for i, s in enumerate(signatures) if s == signature) for signature in dict.fromkeys(signatures)
        ]
        self.data: Data = tuple(jax.tree.map(lambda *x: jnp.stack(x), *[arrays[i] for i in g]) for g in self.groups)
        self.metrics = self._metric_names()
        self.replan(plan)
        self._static_cache: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._jitted = jax.jit(self.evaluate_keys)

    # --- the program -----------------------------------------------------------------------------

    def evaluate(self, key: Any, genomes: Any, data: Data, static: Mapping[str, Any] | None = None) -> Raw:
        """Raw cells of genomes `[P, D]`; traceable; results are replicated over the devices."""
        return self.evaluate_keys(cell_keys(key, self.names, self.replicates), genomes, data, static)

    def evaluate_keys(
        self, keys: Any, genomes: Any, data: Data, static: Mapping[str, Any] | None = None, wanted: Any = None
    ) -> Raw:
        """As `evaluate`, with the cell keys `[domains, replicates]` given; `wanted`: see `over_devices`."""
        out = self.over_devices(lambda g, k, d: self._chunk(g, k, d, static), keys, genomes, data, wanted)
        loss = out.pop("loss")
        evaluated = jnp.broadcast_to(jnp.asarray(self._present), loss.shape)
        if wanted is not None:
            evaluated = evaluated & wanted[:, None]
            loss = jnp.where(wanted[:, None], loss, jnp.nan)
        # A metric that is not finite fails its candidate as a loss does; one that judge never returns is none.
        broken = [(self._returned[name][None] & ~jnp.isfinite(value)).any(axis=1) for name, value in out.items()]
        broken = [rows if wanted is None else rows & wanted for rows in broken]
        failure = (
            jnp.where(jnp.any(jnp.array(broken), axis=0), jnp.int8(Failure.NONFINITE), jnp.int8(Failure.OK))
            if broken
            else jnp.zeros(genomes.shape[0], jnp.int8)
        )
        return Raw(loss, out, evaluated, failure)

    def over_devices(
        self, chunk_of: Callable[..., Any], keys: Any, genomes: Any, data: Data, wanted: Any = None
    ) -> Any:
        """`chunk_of(genomes [chunk, D], keys, data)`, a pytree of arrays `[chunk, ...]`, for all genomes `[P, D]`;
        traceable; results are whole on every device.

        `wanted` `[P]` bool: whose results are needed. They are gathered into as few chunks as can be, the others
        are not computed; what stands there for the unwanted is 0 or a number of no meaning.
        """
        population = genomes.shape[0]
        slab = self.plan.devices * self.plan.chunk
        padded = -(-population // slab) * slab
        # Filler candidates repeat the last one: they cost time, never a number.
        genomes = jnp.concatenate([genomes, jnp.repeat(genomes[-1:], padded - population, axis=0)])
        flags, places = self._gathered(wanted, padded)
        genomes = genomes if wanted is None else genomes[places]
        # Whole on every device: left alone, the compiler would spread what computes them (ask) over the
        # devices too, and their bits would follow the number of devices.
        genomes = jax.lax.with_sharding_constraint(genomes, NamedSharding(self._mesh, PartitionSpec()))

        def on_device(part: Any, flags: Any, keys: Any, data: Data) -> Any:
            chunks = part.reshape(-1, self.plan.chunk, part.shape[-1])

            # The barriers keep the compiler from fusing a chunk with its surroundings, which differ
            # with the number of chunks and would change its bits.
            def one_chunk(chunk: Any) -> Any:
                return jax.lax.optimization_barrier(chunk_of(jax.lax.optimization_barrier(chunk), keys, data))

            def some_chunk(given: tuple[Any, Any]) -> Any:
                shapes = jax.eval_shape(one_chunk, given[0])
                nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
                return jax.lax.cond(given[1], one_chunk, lambda _: nothing, given[0])

            out = jax.lax.map(one_chunk, chunks) if wanted is None else jax.lax.map(some_chunk, (chunks, flags))
            out = jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), out)
            return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), out)

        replicated = PartitionSpec()
        spread = jax.shard_map(
            on_device,
            mesh=self._mesh,
            in_specs=(PartitionSpec(AXIS), PartitionSpec(AXIS), replicated, replicated),
            out_specs=replicated,
            check_vma=False,  # the gathered results are alike on every device, which the checker cannot see
        )
        out = spread(genomes, flags, keys, data)
        if wanted is not None:
            back = jnp.argsort(places)
            out = jax.tree.map(lambda x: x[back], out)
        return jax.tree.map(lambda x: x[:population], out)

    def _gathered(self, wanted: Any, padded: int) -> tuple[Any, Any]:
        """Which chunks hold anybody wanted `[chunks]`, and who stands where `[padded]`: the wanted first.

        Chunks are dealt out to the devices in turn, so that all have as much to do.
        """
        devices, chunk = self.plan.devices, self.plan.chunk
        if wanted is None:
            return jnp.ones(padded // chunk, bool), None
        wanted = jnp.concatenate([wanted, jnp.zeros(padded - wanted.shape[0], bool)])
        order = jnp.argsort(~wanted, stable=True)
        places = jnp.swapaxes(order.reshape(-1, devices, chunk), 0, 1).reshape(-1)
        return jnp.any(wanted[places].reshape(-1, chunk), axis=1), places

    def _chunk(self, genomes: Any, keys: Any, data: Data, static: Mapping[str, Any] | None) -> dict[str, Any]:
        """Metrics `{name: [chunk, C]}` of one chunk of genomes `[chunk, D]`."""
        rows: list[Any] = [None] * len(self.names)
        for group, (support, queries) in zip(self.groups, data, strict=True):
            over_replicates = jax.vmap(lambda g, k, s, q: self._cell(g, k, s, q, static), (None, 0, None, None))
            over_domains = jax.vmap(over_replicates, (None, 0, 0, 0))
            over_chunk = jax.vmap(over_domains, (0, None, None, None))
            out = over_chunk(genomes, keys[np.array(group)], support, queries)  # {metric: [chunk, domains, R, Q]}
            for position, index in enumerate(group):
                rows[index] = {name: value[:, position] for name, value in out.items()}
        names = ("loss", *self.metrics)
        # C runs over domains, then queries, then replicates: see `layout`.
        return {
            name: jnp.concatenate([jnp.swapaxes(row[name], 1, 2).reshape(genomes.shape[0], -1) for row in rows], axis=1)
            for name in names
        }

    def _cell(self, genome: Any, key: Any, support: Any, queries: dict[str, Any], static: Any) -> dict[str, Any]:
        """Train once, judge on every query: `{metric: [Q]}`."""
        judged = train_and_judge(self.task, self.task.space.decode(genome, static), key, support, queries)
        missing = {name: jnp.full((), jnp.nan, jnp.float32) for name in ("loss", *self.metrics)}
        # What is absent stays NaN: a query that the domain lacks, a metric that judge returns on other queries.
        rows = [{**missing, **judged.get(q, {})} for q in self.task.query_names]
        return {name: jnp.stack([jnp.asarray(row[name], jnp.float32) for row in rows]) for name in missing}

    # --- on the host -----------------------------------------------------------------------------

    def host(self, key: Any, genomes: np.ndarray) -> Raw:
        """Raw cells as NumPy, outside any compiled loop."""
        return self.host_keys(cell_keys(key, self.names, self.replicates), genomes)

    def host_keys(self, keys: Any, genomes: np.ndarray, wanted: np.ndarray | None = None) -> Raw:
        """As `host`, with the cell keys given; candidates are grouped by their static columns.

        `wanted` `[P]` bool: whose cells are computed; the others have none.
        """
        space = self.task.space
        if not space.static:
            return jax.tree.map(np.asarray, self._jitted(keys, jnp.asarray(genomes), self.data, None, wanted))
        values = [tuple(sorted(space.static_values(genome).items())) for genome in genomes]
        asked = range(len(genomes)) if wanted is None else np.flatnonzero(wanted).tolist()
        whole = self._no_cells(len(genomes))
        for value in sorted({values[i] for i in asked}, key=str):
            rows = np.array([i for i in asked if values[i] == value])
            if value not in self._static_cache:
                static = dict(value)
                self._static_cache[value] = jax.jit(lambda k, g, d, w, s=static: self.evaluate_keys(k, g, d, s, w))
            # Padded to the whole population, so that each value of the static columns compiles once.
            filled = np.concatenate([genomes[rows], np.repeat(genomes[rows[:1]], len(genomes) - len(rows), axis=0)])
            flags = None if wanted is None else np.arange(len(genomes)) < len(rows)
            raw = self._static_cache[value](keys, jnp.asarray(filled), self.data, flags)
            jax.tree.map(lambda to, x, rows=rows: to.__setitem__(rows, np.asarray(x)[: len(rows)]), whole, raw)
        return whole

    def _no_cells(self, count: int) -> Raw:
        """Raw cells of candidates that none is computed of, to be filled in."""
        shape = (count, len(self.cells))
        metrics = {name: np.full(shape, np.nan, np.float32) for name in self.metrics}
        return Raw(np.full(shape, np.nan, np.float32), metrics, np.zeros(shape, bool), np.zeros(count, np.int8))

    def cost(self) -> Cost:
        """What one candidate costs: all its cells together."""
        genome = jax.ShapeDtypeStruct((1, self.task.space.dimension), jnp.float32)
        keys = jax.eval_shape(lambda: cell_keys(jax.random.key(0), self.names, self.replicates))
        return cost(lambda g, k, d: self._chunk(g, k, d, self._some_static), genome, keys, self.data)

    def replan(self, plan: Plan) -> CompiledCells:
        """The same cells under another plan."""
        self.plan = plan
        self._mesh = Mesh(np.array(jax.devices()[: plan.devices]), (AXIS,))
        return self

    # --- what the task returns, found out before anything is compiled ------------------------------

    def _metric_names(self) -> tuple[str, ...]:
        """Names besides loss; `ConfigError` where judge returns anything but real scalars.

        Notes on the way which cells exist, and for each name in which of them judge returns it.
        """
        self._present = np.array([c.query.split("@")[0] in self._queries_of(c.domain) for c in self.cells])
        genome = jax.ShapeDtypeStruct((self.task.space.dimension,), jnp.float32)
        static = self._some_static = self.task.space.static_values(self.task.space.encode(self.task.baseline)) or None
        returned: dict[str, np.ndarray] = {}
        for group, (support, queries) in zip(self.groups, self.data, strict=True):
            members = {self.names[i] for i in group}
            first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (support, queries))
            try:
                judged = jax.eval_shape(
                    lambda g, k, s, q: train_and_judge(self.task, self.task.space.decode(g, static), k, s, q),
                    genome,
                    jax.eval_shape(lambda: jax.random.key(0)),
                    *first,
                )
            except EvometaError:
                raise
            except ModuleNotFoundError as error:
                raise EvometaError(
                    f"task {self.task.name!r} needs the package {error.name!r}. {how_to_install(error.name)}"
                ) from error
            except Exception as error:
                raise ConfigError(_untraceable(self.task, error)) from error
            for query, metrics in judged.items():
                here = np.array([c.domain in members and c.query == query for c in self.cells])
                for name in _check_metrics(self.task, query, metrics):
                    returned[name] = returned.get(name, False) | here
        returned.pop("loss", None)
        self._returned = returned
        return tuple(sorted(returned))

    def _queries_of(self, domain: str) -> Mapping[str, Any]:
        return self.task.domain(domain).queries


def layout(task: Task, loaded: Sequence[Loaded], replicates: int) -> tuple[Cell, ...]:
    """The cells in the order of the C axis: domains, then queries, then replicates."""
    return tuple(
        Cell(domain.name, query, domain.role, replicate)
        for domain in loaded
        for query in task.query_names
        for replicate in range(replicates)
    )


def _as_arrays(task: Task, domain: Loaded) -> tuple[Any, dict[str, Any]]:
    try:
        return jax.tree.map(jnp.asarray, (domain.support, dict(domain.queries)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"task {task.name!r}: domain {domain.name!r} expected arrays (a JAX task), got {error}."
            ' Give arrays, or say runs="python"'
        ) from error


def _check_metrics(task: Task, query: str, metrics: Any) -> Mapping[str, Any]:
    where = f"task {task.name!r}: judge on {query!r}"
    if not isinstance(metrics, Mapping):
        raise ConfigError(
            f"{where} expected a dict with a 'loss', got {type(metrics).__name__}. Return {{'loss': value}}"
        )
    if "loss" not in metrics:
        raise ConfigError(f"{where} expected a 'loss', got the names {sorted(metrics)}")
    for name, value in metrics.items():
        if value.shape != () or not (
            jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
        ):
            raise ConfigError(
                f"{where}: {name!r} expected a real scalar (shape ()), got shape {value.shape} of {value.dtype}"
            )
    return metrics


def _untraceable(task: Task, error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    hint = ""
    if isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError):
        hint = ' It is not traceable by JAX; write it with jax.numpy, or say runs="python".'
    elif isinstance(error, TypeError) and "not a valid JAX type" in text:
        hint = ' A JAX task returns arrays and numbers; for anything else say runs="python".'
    return f"task {task.name!r} raised {type(error).__name__}: {text}.{hint} See it whole with --debug"
