"""Names become objects here, and nowhere below: tasks and strategies from tables, entry points, modules, files."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from evometa.contract import Task, TaskBuilder
from evometa.errors import ConfigError, EvometaError, NotFound, UsageError, did_you_mean, how_to_install
from evometa.strategies import STRATEGIES
from evometa.tasks import TASKS
from evometa.types import Strategy


def known(kind: str) -> dict[str, str]:
    """Name -> `module:attribute` of every `tasks` or `strategies` entry, the built-in ones first."""
    table = dict({"tasks": TASKS, "strategies": STRATEGIES}[kind])
    for entry in importlib.metadata.entry_points(group=f"evometa.{kind}"):
        table.setdefault(entry.name, entry.value)
    return table


def load_task(reference: str, options: Mapping[str, Any] | None = None, base: Path = Path()) -> Task:
    """The task called `name`, `package.module:attr`, `file.py` or `file.py:attr`, with its factory's options.

    A file that is not here is looked for in `base`: where the run was started.
    Raises `NotFound` for an unknown name, `ConfigError` for a file that cannot be imported or holds no task.
    """
    options = dict(options or {})
    path, _, attribute = reference.partition(":")
    if path.endswith(".py"):
        file = find_file(path, base)
        found, source = _from_file(file, attribute, "task"), str(file.absolute())
    else:
        target = known("tasks").get(reference, reference)
        if ":" not in target:
            hint = f" Is it a file? Then type: evometa run {reference}.py" if Path(f"{reference}.py").exists() else ""
            names = ", ".join(known("tasks"))
            raise NotFound(
                f"no task is called {reference!r}.{did_you_mean(reference, known('tasks'))} Known: {names}.{hint}"
            )
        found, source = _from_module(target, "task"), target
    task = _finish(found, reference, options)
    return task if task.source else task.with_(source=source)


def load_strategy(
    name: str, space: Any, population: int | None, options: Mapping[str, Any] | None = None, base: Path = Path()
) -> Strategy:
    """The strategy called `name` (or `package.module:attr`, `file.py:attr`) built for a space.

    A file that is not here is looked for in `base`: where the run was started.
    """
    factory = strategy_factory(name, base)
    arguments = dict(options or {})
    if population is not None:
        arguments["population"] = population
    check_options(factory, arguments, f"strategy {name!r}")
    return factory(space, **arguments)


def strategy_factory(name: str, base: Path = Path()) -> Callable[..., Strategy]:
    """The factory called `name` (or `package.module:attr`, `file.py:attr`); raises `NotFound`."""
    path, _, attribute = name.partition(":")
    if path.endswith(".py"):
        return _from_file(find_file(path, base), attribute or Path(path).stem, "strategy")
    target = known("strategies").get(name, name)
    if ":" not in target:
        close = did_you_mean(name, known("strategies"))
        raise NotFound(f"no strategy is called {name!r}.{close} Type: evometa strategies")
    return _from_module(target, "strategy")


def profile(reference: str, name: str) -> dict[str, Any]:
    """A built-in task's profile (`smoke`, `standard`, `full`): run options, and task options under `task`."""
    target = known("tasks").get(reference)
    profiles = getattr(importlib.import_module(target.partition(":")[0]), "PROFILES", {}) if target else {}
    if name not in profiles:
        have = f"It has {', '.join(profiles)}" if profiles else "It has none"
        raise NotFound(f"task {reference!r} has no profile {name!r}.{did_you_mean(name, profiles)} {have}")
    return dict(profiles[name])


def code_digest(task: Task) -> str:
    """sha256 of the source that a task computes with.

    That is the file or module that it comes from; what a task file imports from its own folder (as its import
    statements say); the shared parts, for evometa's own tasks; and every existing file that a command names.
    A task that lives in memory only, without commands, has no source to compare: the empty string.
    """
    files = _sources(task.source)
    if task.runs == "command":
        words = dict.fromkeys(word for command in (task.fit, task.judge) for word in command)
        files += [file for file in (Path(task.folder) / word for word in words) if file.is_file()]
    return _digest(files)


def strategy_digest(name: str, base: Path = Path()) -> str:
    """sha256 of the source of a strategy from a file or a module; empty for evometa's own, which have its version."""
    path, _, _ = known("strategies").get(name, name).partition(":")
    if path.endswith(".py"):
        return _digest(_sources(str(find_file(path, base))))
    return "" if path.startswith("evometa.") else _digest(_sources(path))


def sources_digest(file: Path) -> str:
    """sha256 of a file's source and of what it imports from its own folder; nothing is imported."""
    return _digest(_with_neighbours(file.resolve()))


def _digest(files: Iterable[Path]) -> str:
    files = list(dict.fromkeys(files))
    sha = hashlib.sha256()
    for item in files:
        sha.update(item.name.encode() + b"\0" + item.read_bytes())
    return sha.hexdigest() if files else ""


def _sources(source: str) -> list[Path]:
    """The files of `file.py` or `package.module:attr`."""
    path = source.partition(":")[0]
    if path.endswith(".py"):
        return _with_neighbours(Path(path).resolve())
    module = sys.modules.get(path) or importlib.import_module(path) if path else None
    file = getattr(module, "__file__", None)
    if not file:
        return []
    parts = Path(file).parent / "parts"
    return [Path(file), *(sorted(parts.glob("*.py")) if path.startswith("evometa.tasks.") else [])]


def _with_neighbours(file: Path) -> list[Path]:
    """A file and what it imports from its own folder, and what that imports in turn.

    Read from the import statements, not from `sys.modules`: what else a process has imported must not count.
    """
    root, found, queue = file.parent, [file], [file]
    while queue:
        one = queue.pop()
        for near in sorted(_imported(one, root)):
            if near not in found:
                found.append(near)
                queue.append(near)
    return [file, *sorted(found[1:])]


def _imported(file: Path, root: Path) -> set[Path]:
    """The files below `root` that a file's import statements name, the packages on the way included."""
    targets: list[Path] = []
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # it is never imported, or Python says better what is wrong
        return set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets += [root.joinpath(*alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = file.parents[node.level - 1] if node.level else root
            module = start.joinpath(*(node.module or "").split(".")) if node.module else start
            targets += [module, *(module / alias.name for alias in node.names)]
    found = set()
    for target in targets:
        # evometa beside a task file (a working copy of it) has a version of its own.
        steps = target.relative_to(root).parts if target.is_relative_to(root) else ()
        if steps and steps[0] != "evometa":
            stems = [root.joinpath(*steps[:count]) for count in range(1, len(steps) + 1)]
            files = [f for stem in stems for f in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")]
            found |= {f for f in files if f.is_file()}
    return found


def check_options(factory: Callable[..., Any], options: Mapping[str, Any], owner: str) -> None:
    """Raise `UsageError` for an option that the factory does not take."""
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in options:
        if name not in parameters:
            takes = ", ".join(p for p in parameters if p != "space") or "none"
            raise UsageError(f"{owner} has no option {name!r}.{did_you_mean(name, parameters)} It takes: {takes}")


def _from_module(target: str, kind: str) -> Any:
    module_name, _, attribute = target.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules beside where the user is; not before, for reading imports nothing from there
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            raise NotFound(f"no module is called {error.name!r} (wanted for the {kind} {target!r})") from error
        raise _missing_package(target, error) from error
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise NotFound(f"module {module_name!r} has no {attribute!r}.{did_you_mean(attribute, names)}")
    return getattr(module, attribute)


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles a task file from its source, always: a bytecode cache goes by the second and the size of the file,
    and could be older than the code whose digest is recorded."""

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def find_file(path: str, base: Path) -> Path:
    """The file, or the one of that name in `base`; as given where there is neither."""
    return base / path if not Path(path).is_file() and (base / path).is_file() else Path(path)


def _from_file(path: Path, attribute: str, kind: str) -> Any:
    if not path.is_file():
        raise NotFound(f"no file is called {str(path)!r}. Make one with: evometa new {kind} {path.stem}")
    name = f"evometa_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_FreshLoader(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # as `python file.py` would: its neighbours can be imported
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except EvometaError:
        raise
    except ModuleNotFoundError as error:
        raise _missing_package(str(path), error) from error
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: not Python: {error.msg}") from error
    except Exception as error:
        line = _line_in(path, error)
        raise ConfigError(
            f"{path}{line} raised {type(error).__name__} on import: {error}. See it whole with --debug"
        ) from error
    if attribute:
        if not hasattr(module, attribute):
            names = [n for n in vars(module) if not n.startswith("_")]
            raise NotFound(f"{path} has no {attribute!r}.{did_you_mean(attribute, names)}")
        return getattr(module, attribute)
    tasks = {key: value for key, value in vars(module).items() if isinstance(value, Task | TaskBuilder)}
    if "task" in tasks:
        return tasks["task"]
    if len(set(map(id, tasks.values()))) == 1:
        return next(iter(tasks.values()))
    if not tasks:
        raise ConfigError(
            f"{path} holds no task. Write: task = evometa.task(space=..., domains=...); see evometa new task NAME"
        )
    raise ConfigError(f"{path} holds several tasks ({', '.join(tasks)}). Say which: {path}:{next(iter(tasks))}")


def _finish(found: Any, reference: str, options: dict[str, Any]) -> Task:
    if isinstance(found, TaskBuilder):
        found = found.build()
    if isinstance(found, Task):
        if options:
            raise UsageError(
                f"task {reference!r} takes no options, got {', '.join(options)}. Make it a function that returns a Task"
            )
        return found
    if not callable(found):
        raise ConfigError(f"{reference!r} expected a Task or a function that returns one, got {type(found).__name__}")
    check_options(found, options, f"task {reference!r}")
    try:
        made = found(**options)
    except ModuleNotFoundError as error:
        raise _missing_package(reference, error) from error
    if isinstance(made, TaskBuilder):
        made = made.build()
    if not isinstance(made, Task):
        raise ConfigError(f"{reference!r} expected a function that returns a Task, it returned {type(made).__name__}")
    return made


def _missing_package(where: str, error: ModuleNotFoundError) -> EvometaError:
    return EvometaError(
        f"{where} needs the package {error.name!r}, which is not installed. {how_to_install(error.name)}"
    )


def _line_in(path: Path, error: BaseException) -> str:
    lines = (
        [f.lineno for f in inspect.getinnerframes(error.__traceback__) if Path(f.filename).resolve() == path.resolve()]
        if error.__traceback__
        else []
    )
    return f":{lines[-1]}" if lines else ""
