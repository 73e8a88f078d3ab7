"""The seal between training and its exam, tried by force: poison every query, train again, compare the bits.

Queries are overwritten in place (which reaches support data that share their memory, and closures and
globals that hold them), replaced in the task by tripwires, and then exchanged between domains. What is
learned must not change by one bit. Everything is put back afterwards.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from evometa.backends import command, python
from evometa.contract import Task
from evometa.evaluate.cell import trained
from evometa.evaluate.data import Loaded
from evometa.fingerprint import fingerprint
from evometa.keys import Stream, as_int, cell_keys, fit_and_judge_keys, stream_key
from evometa.poison import Undo, arrays_of, garble

_OWN = "let train.py read the support that it is handed, nothing beside it"
_CURE = (
    "train on the support alone: no query in closures, globals or memory that support shares (np.copy what you slice)"
)
Learners = dict[str, str]  # domain -> fingerprint of what was learned there


class Broken(Exception):
    """The seal does not hold: what was found, and the cure."""

    def __init__(self, found: str, cure: str = _CURE) -> None:
        super().__init__(found)
        self.found, self.cure = found, cure


def check_seal(task: Task, loaded: Sequence[Loaded]) -> str:
    """Say how the seal was tried, or raise `Broken`. `loaded`: the train domains."""
    if task.runs == "command":
        return _check_commands(task, loaded)
    learn = (_jax_learning if task.runs == "jax" else _python_learning)(task, loaded)
    supports = {domain.name: fingerprint(domain.support) for domain in loaded}
    queries = {(d.name, q): fingerprint(data) for d in loaded for q, data in d.queries.items()}
    before = learn()
    _unchanged(loaded, supports, queries)
    if learn() != before:
        raise Broken(
            "what is learned differs from one training to the next with the same key, so the seal cannot be tried",
            "see determinism",
        )
    worlds = ["poisoned"] + (["exchanged between domains"] if len(loaded) > 1 else [])
    for world in worlds:
        called: list[str] = []
        with _queries(task, loaded, world, called):
            if changed := [d.name for d in loaded if fingerprint(d.support) != supports[d.name]]:
                raise Broken(
                    f"support of {', '.join(changed)} shares memory with a query: it changed when queries were {world}"
                )
            _reload(task, loaded, supports, world)
            try:
                after = learn()
            except Broken:
                raise
            except (Exception, SystemExit) as error:
                raise Broken(
                    f"training raised {type(error).__name__}: {str(error)[:200]} once the queries were {world}"
                ) from None
        if called:
            raise Broken(f"training loaded the queries {', '.join(dict.fromkeys(called))}")
        if changed := [name for name in before if before[name] != after[name]]:
            raise Broken(
                f"what is learned on {', '.join(changed)} changed when the queries were {world}: training sees them"
            )
    poisoned = sum(len(arrays_of(data)) for d in loaded for data in d.queries.values())
    return (
        f"queries {' and '.join(worlds)} ({poisoned} arrays overwritten in {len(loaded)} domains):"
        " what is learned is the same to the bit"
    )


def _unchanged(loaded: Sequence[Loaded], supports: Mapping[str, str], queries: Mapping[tuple[str, str], str]) -> None:
    """Training and judging must leave the data as they are: the next candidate gets the same objects."""
    if changed := [d.name for d in loaded if fingerprint(d.support) != supports[d.name]]:
        raise Broken(
            f"training changes its support in place ({', '.join(changed)}), so the next candidate sees other data",
            "copy before you write",
        )
    if changed := [
        f"{d.name}/{q}" for d in loaded for q, data in d.queries.items() if fingerprint(data) != queries[d.name, q]
    ]:
        raise Broken(
            f"the queries {', '.join(changed)} were changed in place while a candidate was trained and judged",
            "copy before you write",
        )


def _reload(task: Task, loaded: Sequence[Loaded], supports: Mapping[str, str], world: str) -> None:
    """A support loader must not depend on query data either (a scale taken over both, for example)."""
    for domain in loaded:
        load = task.domain(domain.name).support
        if callable(load):
            try:
                same = fingerprint(load()) == supports[domain.name]
            except Exception as error:
                raise Broken(
                    f"the support loader of {domain.name} raised {type(error).__name__} once the queries were {world}"
                ) from None
            if not same:
                raise Broken(
                    f"the support of {domain.name} is computed from query data: its loader gave other data once the"
                    f" queries were {world}"
                )


@contextmanager
def _queries(task: Task, loaded: Sequence[Loaded], world: str, called: list[str]) -> Iterator[None]:
    """The queries poisoned or exchanged: in their own memory, and wherever the task's domains name them."""
    undo = Undo()
    try:
        if world == "poisoned":
            for domain in loaded:
                for data in domain.queries.values():
                    garble(data, undo)
        else:
            _exchange(loaded, undo)
        for i, domain in enumerate(loaded):
            source = loaded[i] if world == "poisoned" else loaded[(i + 1) % len(loaded)]
            _rewire(task, domain, source, undo, called)
        yield
    finally:
        undo.restore()


def _exchange(loaded: Sequence[Loaded], undo: Undo) -> None:
    """Give every query the contents of the next domain's, where their shapes allow it."""
    held = [{q: [a.copy() for a in arrays_of(data)] for q, data in d.queries.items()} for d in loaded]
    for i, domain in enumerate(loaded):
        for query, data in domain.queries.items():
            theirs = held[(i + 1) % len(loaded)].get(query, [])
            for mine, other in zip(arrays_of(data), theirs, strict=False):
                if mine.shape == other.shape and mine.dtype == other.dtype:
                    undo.write(mine, other)


def _rewire(task: Task, domain: Loaded, source: Loaded, undo: Undo, called: list[str]) -> None:
    owner = task.domain(domain.name)
    for query, given in dict(owner.queries).items():
        data = source.queries.get(query, domain.queries[query])

        def ring(data: Any = data, query: str = query) -> Any:
            called.append(f"{domain.name}/{query}")
            return data

        value = ring if callable(given) else data
        if isinstance(owner.queries, MutableMapping):
            undo.put(owner.queries, query, value)
        else:
            undo.set(owner, "queries", {**owner.queries, query: value})


# --- JAX -----------------------------------------------------------------------------------------------


def _jax_learning(task: Task, loaded: Sequence[Loaded]) -> Callable[[], Learners]:
    """Trains the baseline and a random candidate on every domain; traced and compiled anew at each call."""
    space, baseline = task.space, task.space.encode(task.baseline)
    static = space.static_values(baseline) or None
    drawn = np.asarray(space.project(space.sample(stream_key(0, 2, Stream.CHECK), 1)))
    genomes = np.concatenate([baseline[None], drawn])
    keys = cell_keys(stream_key(0, 0, Stream.CHECK), tuple(d.name for d in loaded), 1)[:, 0]
    words = np.asarray(jax.random.key_data(keys))

    def one(genome: Any, word: Any, support: Any) -> Any:
        return _learn(task, space.decode(genome, static), jax.random.wrap_key_data(word), support)

    def learn() -> Learners:
        # A jitted function inside fit would otherwise remember what it closed over.
        jax.clear_caches()
        # Copies: a JAX array may lie on a NumPy array's own memory, and that may be poisoned.
        supports = [jax.tree.map(np.array, domain.support) for domain in loaded]
        shapes = [str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), support)) for support in supports]
        learners: Learners = {}
        for shape in dict.fromkeys(shapes):
            rows = [i for i, s in enumerate(shapes) if s == shape]
            stacked = jax.tree.map(lambda *x: np.stack(x), *[supports[i] for i in rows])
            # A new function each time, so that nothing traced before is used again.
            train = jax.jit(lambda g, k, s: jax.vmap(jax.vmap(one, (0, None, None)), (None, 0, 0))(g, k, s))
            trained = jax.tree.leaves(train(genomes, words[np.array(rows)], stacked))
            for position, i in enumerate(rows):
                learners[loaded[i].name] = fingerprint([leaf[position] for leaf in trained])
        return learners

    return learn


def _learn(task: Task, candidate: Any, key: Any, support: Any) -> Any:
    """What is learned at the last mark, with the keys of a run."""
    fit_key, _ = fit_and_judge_keys(key, ())
    return [learner for _, learner in trained(task, candidate, fit_key, support)][-1]


# --- Python --------------------------------------------------------------------------------------------


def _python_learning(task: Task, loaded: Sequence[Loaded]) -> Callable[[], Learners]:
    """Trains the baseline on every domain, judged as in a run: judging must not change the learner either."""
    candidate = task.space.decode_host(task.space.encode(task.baseline))
    keys = cell_keys(stream_key(0, 0, Stream.CHECK), tuple(d.name for d in loaded), 1)[:, 0]
    fit_keys, judge_keys = zip(*[fit_and_judge_keys(key, task.query_names) for key in keys], strict=True)
    integers = [
        (as_int(one), {query: as_int(value) for query, value in many.items()})
        for one, many in zip(fit_keys, judge_keys, strict=True)
    ]

    def learn() -> Learners:
        learners: Learners = {}
        for (fit_key, judge_key), domain in zip(integers, loaded, strict=True):
            states: list[str] = []
            python.run_cell(
                task.with_(judge=_watching(task, domain.name, states)), candidate, fit_key, judge_key, domain
            )
            learners[domain.name] = "".join(states)
        return learners

    return learn


def _watching(task: Task, domain: str, states: list[str]) -> Callable[..., dict[str, float]]:
    """The task's judge; notes what was learned, and raises `Broken` where judging changes it."""

    def judge(key: int, learned: Any, data: Any) -> dict[str, float]:
        states.append(fingerprint(learned))
        # Poison may well break a judge; only the learner is of interest here.
        with suppress(Exception, SystemExit):
            task.judge(key, learned, data)
        if fingerprint(learned) != states[-1]:
            raise Broken(
                f"judge changes what was learned on {domain}, so the exam leaks into what is judged next",
                "let judge work on a copy",
            )
        return {"loss": 0.0}

    return judge


# --- commands ------------------------------------------------------------------------------------------


def _check_commands(task: Task, loaded: Sequence[Loaded]) -> str:
    """Support and query files are apart, fit opens no query file, and learns the same from a copy of its support."""
    for domain in loaded:
        for query, data in domain.queries.items():
            if _path(domain.support) and _path(data):
                _apart(domain, query, Path(domain.support), Path(data))
    candidate = task.space.decode_host(task.space.encode(task.baseline))
    keys = cell_keys(stream_key(0, 0, Stream.CHECK), tuple(d.name for d in loaded), 1)[:, 0]
    files = [file for d in loaded for data in d.queries.values() if _path(data) for file in _files(Path(data))]
    watched = True
    for key, domain in zip(keys, loaded, strict=True):
        fit_key = as_int(fit_and_judge_keys(key, ())[0])
        with _watch(files) as opened:
            before = _fit(task, candidate, fit_key, domain.support)
        watched = watched and opened is not None
        if opened:
            raise Broken(
                f"fit on {domain.name} opened the query {', '.join(sorted(opened))}",
                _OWN,
            )
        with tempfile.TemporaryDirectory(prefix="evometa-check-") as folder:
            try:
                after = _fit(task, candidate, fit_key, _copied(domain.support, Path(folder)))
            except (RuntimeError, TimeoutError) as error:
                raise Broken(
                    f"fit on {domain.name} works where the support lies, but not on a copy elsewhere: {error}", _OWN
                ) from None
        if before != after:
            again = _fit(task, candidate, fit_key, domain.support)
            if again != before:
                raise Broken(
                    f"fit on {domain.name} left other files the second time with the same key",
                    "seed everything from key; write no dates and no paths",
                )
            raise Broken(
                f"fit on {domain.name} left other files when its support was a copy elsewhere",
                f"{_OWN}, and write no paths",
            )
    how = (
        f"fit opened none of {len(files)} query files"
        if files and watched
        else "queries are not files"
        if not files
        else "(this disk does not tell who reads: opened query files were not looked for)"
    )
    return f"{how}; from a copy of its support it leaves the same files to the bit"


def _path(value: Any) -> bool:
    return isinstance(value, str | Path) and len(str(value)) < 4096 and Path(value).exists()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _apart(domain: Loaded, query: str, support: Path, exam: Path) -> None:
    cure = "keep support and queries in folders of their own, e.g. data/en/support and data/en/away"
    inside = exam.resolve() == support.resolve() or support.resolve() in exam.resolve().parents
    if inside or exam.resolve() in support.resolve().parents:
        where = f"query {query} lies inside its support" if inside else f"support lies inside its query {query}"
        raise Broken(f"domain {domain.name}: the {where} ({exam}), where fit can read it", cure)
    taken = {(file.stat().st_dev, file.stat().st_ino): file for file in _files(support)}
    sizes: dict[int, list[Path]] = {}
    for file in _files(support):
        sizes.setdefault(file.stat().st_size or -1, []).append(file)  # empty files are nobody's twin
    for file in _files(exam):
        twin = taken.get((file.stat().st_dev, file.stat().st_ino))
        alike = sizes.get(file.stat().st_size, [])
        twin = twin or next((other for other in alike if filecmp.cmp(other, file, shallow=False)), None)
        if twin is not None:
            raise Broken(
                f"domain {domain.name}: the support holds {twin}, which is the file {file} of query {query}", cure
            )


def _fit(task: Task, candidate: Any, key: int, support: Any) -> str:
    """Run the fit command; sha256 of the folder that it leaves."""
    deadline = None if task.time_limit is None else time.monotonic() + task.time_limit
    with tempfile.TemporaryDirectory(prefix="evometa-check-") as folder:
        learned = Path(folder) / "learned"
        learned.mkdir()
        command.call(
            "fit",
            task.fit,
            {"candidate": candidate, "key": key, "support": support, "learned": str(learned)},
            deadline,
            task.time_limit,
        )
        return fingerprint(
            [(str(file.relative_to(learned)), hashlib.sha256(file.read_bytes()).digest()) for file in _files(learned)]
        )


def _copied(support: Any, folder: Path) -> Any:
    if not _path(support):
        return support
    target = folder / Path(support).name
    if Path(support).is_dir():
        shutil.copytree(support, target)
    else:
        shutil.copy2(support, target)
    return str(target)


@contextmanager
def _watch(files: Sequence[Path]) -> Iterator[set[str] | None]:
    """The files that are read meanwhile, told by their access times; None where the disk does not keep them."""
    stats = {file: file.stat() for file in files}
    opened: set[str] = set()
    try:
        works = (
            bool(files)
            and _touch(files[0], stats[files[0]])
            and files[0].read_bytes() is not None
            and files[0].stat().st_atime_ns != 0
        )
        works = works and all(_touch(file, stat) for file, stat in stats.items())
        yield opened if works or not files else None
        if works:
            opened |= {str(file) for file in files if file.stat().st_atime_ns != 0}
    finally:
        for file, stat in stats.items():
            with suppress(OSError):
                os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _touch(file: Path, stat: os.stat_result) -> bool:
    try:
        os.utime(file, ns=(0, stat.st_mtime_ns))
    except OSError:
        return False
    return True
