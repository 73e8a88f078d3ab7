"""Recreate the lower searches behind a nested run's candidate: computed again, written down as lineages.

Inner candidates are not stored while a nested run goes on: there are too many, and they follow from the outer
candidate and its keys. What is computed here must lead to the same losses, to the bit, as the run recorded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evometa import api, folder
from evometa.archives.read import Archive
from evometa.archives.rows import lineage_table
from evometa.archives.write import commit
from evometa.backends.inline import HostCells
from evometa.evaluate.compiled import CompiledCells
from evometa.evaluate.staged import StagedCells
from evometa.keys import Stream, as_int, cell_keys, fit_and_judge_keys, stream_key
from evometa.nest import search_of
from evometa.nest_search import CompiledSearch, HostSearch, handed
from evometa.session import Session
from evometa.types import Block, Cell

FOLDER = "expanded"


def expand(path: Path, generation: int, index: int) -> dict[str, Any]:
    """Write the lower searches of candidate (generation, index) below `path / "expanded"`, one folder per domain.

    Returns `{"equal", "searches": [{"path", "domain", "replicate", "equal"}]}`; `equal`: the search computed
    again led to the recorded losses, to the bit. Each folder can be read with every `evometa archive` command. Of a
    candidate that was stopped at a hurdle there are the searches of the hurdle's domains only: there were no others.
    Raises `ConfigError` for a run of fewer than two levels, `NotFound` for a candidate that is not there.
    """
    record, row = folder.read_record(path), Archive(path).row(generation, index)
    session = api.reopen(path)
    search_of(session.task)
    stored = {(s["domain"], s["query"], s["replicate"]): s["loss"] for s in row["scores"]}
    genome = np.array(row["genome"], np.float32)
    again = _hosted if isinstance(session.backend, HostCells) else _compiled
    domains = len(session.train)
    if session.spec.hurdle is not None and row["failure"] == "skipped":
        domains = session.spec.hurdle.domains
    searches = []
    for domain, replicate, block, losses in again(session, genome, generation, domains):
        equal = all(
            np.float32(stored[domain, query, replicate]).tobytes() == np.float32(loss).tobytes()
            for query, loss in losses.items()
        )
        made = _write(path, session, record, genome, (generation, index, domain, replicate), block)
        searches.append({"path": str(made), "domain": domain, "replicate": replicate, "equal": equal})
    return {"equal": all(one["equal"] for one in searches), "searches": searches}


def _compiled(session: Session, genome: np.ndarray, generation: int, domains: int) -> Any:
    """Yield (domain, replicate, block, losses) of the first so many domains, stage by stage as in the run."""
    backend = session.backend
    assert not isinstance(backend, HostCells)
    stages = [backend.first, backend.rest] if isinstance(backend, StagedCells) else [backend]
    for cells in stages:
        if domains > 0:
            yield from _stage(session, cells, genome, generation)
        domains -= len(cells.names)


def _stage(session: Session, backend: CompiledCells, genome: np.ndarray, generation: int) -> Any:
    """The searches of one stage's domains, from a program of the same shapes as the run's own."""
    search, space = search_of(session.task), session.task.space
    assert isinstance(search, CompiledSearch)
    root = stream_key(session.spec.seed, generation, Stream.EVALUATE)
    keys = cell_keys(root, backend.names, backend.replicates)

    def cell(genome: Any, key: Any, support: Any, queries: Any) -> Any:
        fit_key, judge_keys = fit_and_judge_keys(key, tuple(queries))
        searched, rows = search.rows(fit_key, space.decode(genome), support)
        return rows, {q: search.judge(judge_keys[q], searched, data)["loss"] for q, data in queries.items()}

    def chunk_of(genomes: Any, keys: Any, data: Any) -> Any:
        over = jax.vmap(jax.vmap(jax.vmap(cell, (None, 0, None, None)), (None, 0, 0, 0)), (0, None, None, None))
        return [
            over(genomes, keys[np.array(members)], support, queries)
            for members, (support, queries) in zip(backend.groups, data, strict=True)
        ]

    # A whole population of the same candidate, spread as in the run: another shape is another program.
    genomes = jnp.repeat(jnp.asarray(genome)[None], session.strategy.population, axis=0)
    computed = jax.jit(lambda k, g, d: backend.over_devices(chunk_of, k, g, d))(keys, genomes, backend.data)
    for members, (rows, losses) in zip(backend.groups, computed, strict=True):
        for position, member in enumerate(members):
            for replicate in range(backend.replicates):
                at = (0, position, replicate)
                one = jax.tree.map(lambda x, at=at: np.asarray(x[at]), rows)
                block = Block(0, one.genomes, one.parents, one.scores, {})
                yield backend.names[member], replicate, block, {q: loss[at] for q, loss in losses.items()}


def _hosted(session: Session, genome: np.ndarray, generation: int, domains: int) -> Any:
    """The same for a search in plain Python."""
    backend, search, task = session.backend, search_of(session.task), session.task
    assert isinstance(backend, HostCells) and isinstance(search, HostSearch)
    root = stream_key(session.spec.seed, generation, Stream.EVALUATE)
    keys = cell_keys(root, backend.names, backend.replicates)
    candidate = task.space.decode_host(genome)
    for d, domain in enumerate(backend.loaded[:domains]):
        for replicate in range(backend.replicates):
            fit_key, judge_keys = fit_and_judge_keys(keys[d, replicate], task.query_names)
            searched, block = search.rows(as_int(fit_key), candidate, domain.support)
            losses = {q: search.judge(as_int(judge_keys[q]), searched, x)["loss"] for q, x in domain.queries.items()}
            yield domain.name, replicate, block, losses


def _write(
    path: Path, session: Session, record: dict[str, Any], genome: np.ndarray, who: tuple[int, int, str, int], block: Any
) -> Path:
    generation, index, domain, replicate = who
    search = search_of(session.task)
    given = handed(session.task.space.decode_host(genome), search.free, search.lower)
    tuned = {name: float(value) for name, value in given.tuned.items()}
    strategy = search.lower.make(search.free, **tuned)
    space = search.held(given.slots)
    support = session.task.domain(domain).tags["support"].split(",")
    cells = tuple(
        Cell(support[int(c.domain)] if c.domain.isdigit() else c.domain, *c[1:]) for c in search.cells(len(support))
    )
    out, name = path / FOLDER / f"{generation}-{index}", f"{domain}-r{replicate}"
    made = out / name
    task = {**record["task"], "name": search.task.name, "space": space.to_json(), "split": {"train": support}}
    lower = {
        **{key: value for key, value in record.items() if key not in ("format", "schema_digest", "run", "from")},
        "task": {**task, "objectives": [str(o) for o in search.task.objectives]},
        "strategy": {"name": strategy.name, "population": strategy.population, "operators": list(strategy.operators)},
        "generations": search.lower.generations,
        "expanded": {"run": path.name, "generation": generation, "index": index, "domain": domain},
        "hyperparameters": tuned,
    }
    if not (made / folder.RECORD).is_file():
        made = folder.create(out, name, name, lower)
    commit(made / "lineage", lineage_table(name, block, cells, space, strategy.operators, session.spec.seed), 0)
    return made
