"""`evometa check`: does a task or a strategy keep its contract? Each line is a check that was really made.

What a check cannot see: numbers that were computed from a query when the file was imported (a mean, a
vocabulary) and are only read afterwards. Compute such things inside `fit`, from the support.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from evometa.checks import HostChecks, JaxChecks, Report
from evometa.contract import Domain, Task
from evometa.errors import EvometaError
from evometa.evaluate import data as datasets
from evometa.evaluate.data import Loaded
from evometa.names import check_options, load_task, strategy_factory

# --- tasks ---------------------------------------------------------------------------------------------


def check_task(reference: str) -> Report:
    """Check a task: a name, `file.py`, `file.py:attr`, or a spec file with a `[task]` table.

    Test domains are not loaded. Raises `NotFound` and `ConfigError` where there is no task to check; all
    else that is wrong is a line of the report.
    """
    task = _load(reference)
    report = Report(f"task {task.name}")
    report.add(
        "space", f"{task.space.dimension} numbers in {len(task.space.columns)} columns; the baseline lies inside"
    )
    opened: list[str] = []
    try:
        with _tripwires(task, opened):
            loaded = _check_data(task, report)
            if loaded is not None:
                checks = JaxChecks if task.runs == "jax" else HostChecks
                checks(task, loaded, report).run()
    except EvometaError as error:
        report.add("functions", "", str(error), "correct that, then check again")
    sealed = ", ".join(task.split.test)
    if sealed:
        report.add(
            "test domains",
            f"{sealed} stayed closed: nothing called their loaders",
            f"the task itself loaded {', '.join(dict.fromkeys(opened))}" if opened else "",
            "fit and judge may use only what they are handed",
        )
    return report


def _load(reference: str) -> Task:
    if not reference.endswith(".toml"):
        return load_task(reference)
    from evometa.spec import build, read_toml
    from evometa.spec_task import task_from_table

    spec = build(read_toml(Path(reference)), Path(reference))
    return load_task(spec.task, spec.task_options) if isinstance(spec.task, str) else task_from_table(spec.task)


@contextmanager
def _tripwires(task: Task, opened: list[str]) -> Iterator[None]:
    """Test domains whose loaders note that they were called, for as long as the check lasts."""

    def wire(domain: Domain, label: str, load: Any) -> Any:
        def ring() -> Any:
            opened.append(f"{domain.name}/{label}")
            return load()

        return ring if callable(load) else load

    kept = []
    for name in task.split.test:
        domain = task.domain(name)
        kept.append((domain, domain.support, domain.queries))
        queries = {label: wire(domain, label, load) for label, load in domain.queries.items()}
        object.__setattr__(domain, "support", wire(domain, "support", domain.support))
        object.__setattr__(domain, "queries", queries)
    try:
        yield
    finally:
        for domain, support, queries in kept:
            object.__setattr__(domain, "support", support)
            object.__setattr__(domain, "queries", queries)


def _check_data(task: Task, report: Report) -> tuple[Loaded, ...] | None:
    names = (*task.split.train, *task.split.validation)
    try:
        loaded = datasets.load(task, names)
        again = datasets.digest(loaded) == datasets.digest(datasets.load(task, names))
    except EvometaError as error:
        report.add(
            "data",
            "",
            str(error),
            "each domain needs a support and queries, or functions without arguments that return them",
        )
        return None
    report.add(
        "data",
        f"{len(task.split.train)} train and {len(task.split.validation)} validation domains load;"
        f" queries {', '.join(task.query_names)}",
        "" if again else "a domain's data were different when loaded a second time, so a resume would be refused",
        "seed what the loaders draw with a fixed number",
    )
    shapes = len({_shape_of(domain) for domain in loaded})
    if task.runs == "jax" and shapes > 1:
        report.add("shapes", f"{shapes} different shapes of data: each is compiled apart, which only costs time")
    return loaded


def _shape_of(domain: Loaded) -> str:
    return str(
        jax.tree.map(lambda x: (np.shape(x), str(getattr(x, "dtype", type(x)))), (domain.support, dict(domain.queries)))
    )


# --- strategies ----------------------------------------------------------------------------------------

# They sample blindly, so nobody expects them to beat random search.
_BLIND = ("random_search", "sobol")


def check_strategy(reference: str) -> Report:
    """Put a strategy (a name, `file.py:attr` or `module:attr`) through the exam of `evometa.testing`.

    Raises `NotFound` and `ConfigError` where there is no strategy to check.
    """
    from evometa.strategies import CATALOGUE
    from evometa.testing import exam

    factory = strategy_factory(reference)
    report = Report(f"strategy {reference}")
    if not callable(factory):
        report.add(
            "factory",
            "",
            f"expected a function of a space, got {type(factory).__name__}",
            "def my_strategy(space, population=32): ...",
        )
        return report

    def checked(space: Any, **options: Any) -> Any:
        check_options(factory, options, f"strategy {reference!r}")
        return factory(space, **options)

    least = CATALOGUE[reference].minimum if reference in CATALOGUE else 1
    try:
        passed = exam(checked, population=max(16, least), beats_random=reference not in _BLIND)
    except AssertionError as error:
        report.add("exam", "", str(error), "see evometa/testing.py for what each check does")
    except EvometaError as error:
        report.add(
            "exam", "", f"refused the exam's own space: {error}", "accept spaces of the columns that `searches` names"
        )
    except Exception as error:
        report.add(
            "exam",
            "",
            f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "see it whole: python -c 'from evometa.testing import exam; exam(...)'",
        )
    else:
        for check in passed.checks:
            report.add(check, _MEANING.get(check, "passed"))
    return report


_MEANING = {
    "refusals": "nonsense is refused with words",
    "shapes": "genomes, parents and states have the shapes and types of the contract",
    "prior": "a prior is where the search starts",
    "bounds": "every genome lies inside the space",
    "failures": "goes on where a quarter of each generation fails",
    "none_finite": "a generation without a finite row changes nothing",
    "ties": "equal scores, for long, break nothing",
    "parents": "parents name rows of earlier generations",
    "resume": "stopped anywhere and resumed: the same bits",
    "block": "compiled as a block, apart, or over two devices: the same bits",
    "beats_random": "beats random search at equal evaluations",
}
