"""The command line. Answers at once: everything heavy is imported when a command runs.

Data go to standard output, words to standard error. Errors are one line (expected, got, what to do) and
an exit code: 0 ok, 1 run error, 2 usage, 3 not found, 4 config or schema, 5 integrity, 6 resume mismatch,
74 input/output, 130/143 signals.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from evometa import __version__
from evometa.cli_archive import Json, Out, RunName, archive, emit
from evometa.cli_archive_more import register as register_archive_more
from evometa.cli_author import check_app, new_app
from evometa.cli_doctor import register as register_doctor
from evometa.cli_export import register as register_export
from evometa.cli_look import register as register_look
from evometa.cli_study import register as register_study
from evometa.errors import EvometaError, UsageError
from evometa.printable import printable

if TYPE_CHECKING:
    from evometa.driver import Watch
    from evometa.spec import Spec

Backend = Annotated[
    str | None,
    typer.Option(help="inline (this process), processes, or ray. Default: plain Python in processes, else inline."),
]
Workers = Annotated[int | None, typer.Option(help="Worker processes; by default one per core.")]
Gpus = Annotated[float | None, typer.Option(help="GPUs that each worker sees (CUDA_VISIBLE_DEVICES); 0.5: two share.")]

app = typer.Typer(
    help="Search for how to learn: population-based search over meta-parameters, scored on held-out domains.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
register_archive_more(archive)
app.add_typer(archive, name="archive")
app.add_typer(check_app, name="check")
app.add_typer(new_app, name="new")


def _say_version(asked: bool) -> None:
    if asked:  # at once, before a command is missed
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    if debug:
        os.environ["EVOMETA_DEBUG"] = "1"


@app.command()
def run(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task's name, file.py, file.py:attr, or spec.toml.")],
    strategy: Annotated[str | None, typer.Option(help="A strategy's name (see: evometa strategies).")] = None,
    generations: Annotated[int | None, typer.Option(help="How many generations.")] = None,
    population: Annotated[int | None, typer.Option(help="Candidates per generation.")] = None,
    seed: Annotated[int | None, typer.Option(help="Everything random follows from it.")] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="QUERY[:mean|worst|cvar[:FRACTION]]; repeat for several.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of the spec, e.g. strategy_options.sigma=0.3.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="A task's profile: smoke, standard or full.")] = None,
    backend: Backend = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    plan: Annotated[
        str | None, typer.Option(metavar="RUN", help="Use the plan (chunk, devices, block) of another run.")
    ] = None,
    fork: Annotated[
        str | None, typer.Option("--from", metavar="RUN@GEN", help="Start from another run's state.")
    ] = None,
    out: Out = Path("runs"),
    name: Annotated[str | None, typer.Option(help="The run's name; by default task-strategy-seed.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved spec and plan, run nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Start a run and carry it to its end, then choose its champion.

    Example: evometa run ladder --strategy cma_es --generations 40
    """
    from evometa.spec import assign, build, read_toml

    source = Path(task) if task.endswith(".toml") else None
    values: dict[str, Any] = read_toml(source) if source else {"task": task}
    if profile is not None:
        _apply_profile(values, profile)
    flags = {
        "strategy": strategy,
        "generations": generations,
        "population": population,
        "seed": seed,
        "objective": objective[0] if objective and len(objective) == 1 else objective,
        "backend": backend,
        "workers": workers,
        "gpus_per_worker": gpus_per_worker,
        "name": name,
    }
    values |= {key: value for key, value in flags.items() if value is not None}
    assign(values, settings or [])
    spec = build(values, source)
    _start_jax(spec, plan, out)
    if dry_run:
        _dry_run(spec, _plan_of(plan, out), as_json)
        return
    from evometa import api

    began = _now()
    made = api.begin(spec, out, watch=_watch(), fork=fork, plan=_plan_of(plan, out))
    _say_done(made, _now() - began, as_json)


@app.command()
def resume(
    run: RunName,
    generations: Annotated[int | None, typer.Option(help="Carry it to this many generations in all.")] = None,
    backend: Backend = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
    as_json: Json = False,
) -> None:
    """Go on with a run that stopped, or extend one that is finished.

    Example: evometa resume runs/ladder-cma_es-s0 --generations 80
    """
    from evometa import folder
    from evometa.machine import use_devices_of

    path = folder.find(run)
    use_devices_of(path)
    from evometa import api

    began = _now()
    where = {"backend": backend, "workers": workers, "gpus_per_worker": gpus_per_worker}
    _say_done(api.resume(path, generations=generations, watch=_watch(), **where), _now() - began, as_json)


@app.command()
def deploy(
    run: RunName,
    generations: Annotated[int | None, typer.Option(help="Another length than the search below had.")] = None,
    population: Annotated[int | None, typer.Option(help="Another population than it had.")] = None,
    out: Out = Path("runs"),
    name: Annotated[str | None, typer.Option(help="The new run's name; by default RUN-deployed.")] = None,
    as_json: Json = False,
) -> None:
    """Run the level below a nested run with its champion's settings, as a run of its own.

    Example: evometa deploy runs/nested
    """
    from evometa import folder
    from evometa.machine import use_devices_of

    path = folder.find(run, out)
    use_devices_of(path)
    from evometa import api

    began = _now()
    made = api.deploy(path, generations=generations, population=population, out=out, name=name, watch=_watch())
    _say_done(made, _now() - began, as_json)


@app.command()
def unseal(
    run: RunName,
    seeds: Annotated[int, typer.Option(help="Fresh inner seeds per domain, at least 10.")] = 10,
    as_json: Json = False,
) -> None:
    """Open the test domains: judge champion and baseline on them, paired. Every opening is recorded.

    Example: evometa unseal runs/ladder-cma_es-s0
    """
    from evometa import folder
    from evometa.machine import use_devices_of

    path = folder.find(run)
    use_devices_of(path)
    from evometa import api
    from evometa.reports.tables import opening_table

    result = api.open(path).unseal(seeds)
    emit(result, as_json, lambda: opening_table(result))


@app.command()
def demo(
    out: Out = Path("runs"),
    profile: Annotated[str, typer.Option(help="smoke (seconds) or standard (the README's).")] = "standard",
    seed: Annotated[int, typer.Option(help="Search seed of all four searches.")] = 0,
    as_json: Json = False,
) -> None:
    """Run the language ladder's demonstration: four searches, then the sealed languages, one table.

    Interrupted, it goes on where it was; finished, it shows its table again without another look.
    """
    _start_jax(None, None, out)
    from evometa.demo import demonstrate
    from evometa.reports.tables import demo_table

    result = demonstrate(out, profile, seed, _watch_named)
    emit(result, as_json, lambda: demo_table(result))


register_study(app)
register_look(app)
register_export(app)
register_doctor(app)


# --- shared by the commands ---------------------------------------------------------------------------


def _now() -> float:
    import time

    return time.monotonic()


def _watch() -> Watch:
    from evometa.reports.live import Live

    return Live()


def _watch_named(title: str) -> Watch:
    from evometa.reports.live import Live

    return Live(title=title)


def _apply_profile(values: dict[str, Any], profile: str) -> None:
    from evometa.names import profile as find

    if not isinstance(values.get("task"), str):
        raise UsageError("--profile goes with a task that has profiles; this spec describes its own")
    chosen = find(values["task"], profile)
    options = {**chosen.pop("task", {}), **values.get("task_options", {})}
    values.update({**chosen, **values, "task_options": options})


def _start_jax(spec: Spec | None, plan: str | None, out: Path) -> None:
    from evometa.machine import keep_compilations, use_host_devices

    keep_compilations()
    borrowed = _plan_of(plan, out)
    use_host_devices(borrowed.devices if borrowed else spec.plan.devices if spec else None)


def _plan_of(run: str | None, out: Path) -> Any:
    if run is None:
        return None
    from evometa.evaluate.plan import Plan
    from evometa.folder import find, read_record

    path = find(run, out)
    return Plan.of_record(read_record(path)["plan"], path)


def _dry_run(spec: Spec, plan: Any, as_json: bool) -> None:
    from evometa.session import prepare

    session = prepare(spec, plan=plan)
    population = session.strategy.population
    data = {
        **session.identity,
        "generations": spec.generations,
        "candidates": spec.generations * population,
        "trainings": spec.generations * population * len(session.task.split.train) * session.task.replicates,
    }
    emit(data, as_json, lambda: json.dumps(data, indent=1))


def _say_done(made: Any, seconds: float, as_json: bool) -> None:
    best, population = made.champion, made.record["strategy"]["population"]
    first = (made.record.get("from") or {}).get("first", 0)
    data = {
        "run": made.name,
        "path": str(made.path),
        "generations": made.generations,
        "candidates": (made.generations - first) * population,
        "champion": {"generation": best.generation, "index": best.index, "validation": best.validation},
        "seconds": round(seconds, 3),
    }

    def text() -> str:
        rows = made.summary()
        width = max(len(key) for key in rows)
        lines = [f"{key:<{width}}  {value}" for key, value in rows.items()]
        sealed = made.record["task"]["split"]["test"]
        following = [f"evometa archive top {made.path}"]
        if sealed:
            following.append(f"evometa unseal {made.path}   (opens {', '.join(sealed)}, and records it)")
        return "\n".join([*lines, "next:", *[f"  {line}" for line in following]])

    emit(data, as_json, text)


def main() -> None:
    """Run the command line; the one place where an error becomes a line and an exit code."""
    # Outside the search, which has handlers of its own, a termination ends with its code and no traceback.
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGUSR1, _terminate)  # before a preemption
    try:
        code = app(standalone_mode=False)
        if code == 130:  # what typer makes of a KeyboardInterrupt, and so of a termination
            _stopped()
        raise SystemExit(code if isinstance(code, int) else 0)
    except EvometaError as error:
        _fail(str(error), error.exit_code)
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None
    except (typer.Abort, KeyboardInterrupt):
        _stopped()
    except BrokenPipeError:
        # The reader of our output left (`| head`): nothing to say, and nowhere to say it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(0) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
            _fail(error.format_message(), getattr(error, "exit_code", 2))  # type: ignore[attr-defined]
        if isinstance(error, OSError):
            _fail(f"{error.strerror or error}: {error.filename or ''}".strip(": "), 74)
        first = (str(error).splitlines() or [""])[0]
        _fail(f"unexpected {type(error).__name__}: {first} (see it whole with: evometa --debug ...)", 1)


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGUSR1, as an exception that no task's code takes for its own: neither Exception nor SystemExit."""


_received: list[int] = []  # SIGTERM or SIGUSR1, where one came


def _terminate(number: int, frame: object) -> None:
    _received.append(number)
    raise _Terminated(number)


def _stopped() -> NoReturn:
    """End as a signal outside the search asks for; what was finished is on disk."""
    number = _received[0] if _received else signal.SIGINT
    _fail(
        f"stopped by {signal.Signals(number).name}. Go on with: evometa resume RUN, where a run had begun", 128 + number
    )


def _fail(text: str, code: int) -> NoReturn:
    if os.environ.get("EVOMETA_DEBUG") and sys.exc_info()[0] is not None:
        raise
    print(printable(f"evometa: {text}"), file=sys.stderr)
    raise SystemExit(code) from None
