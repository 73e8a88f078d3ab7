"""`evometa doctor`: what of this machine, these folders and these packages stands in a run's way, and the cure.

Every check takes what it looks at as arguments, so that each finding can be shown. Nothing is changed but for an
empty file that is made and removed where something is to be writable; nobody's lock is touched.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path

from evometa import folder, machine
from evometa.archives import events
from evometa.archives.check import check
from evometa.archives.place import of
from evometa.archives.read import Archive
from evometa.archives.store import ENDPOINTS, Store, conditions, endpoint
from evometa.backends.ray_cluster import ANOTHER_TOKEN, refuses_token
from evometa.doctor_machine import Finding, clock, cores, disk, network
from evometa.errors import EvometaError
from evometa.trust import state_file

SECONDS = 120.0  # for another process that answers in one
# What the extras are for; which packages they are is known from evometa's own metadata.
EXTRAS = {
    "tasks": "the tasks ladder and digits",
    "rl": "the neural tasks of rl_loss_graph",
    "reports": "figures",
    "processes": "worker processes",
    "ray": "clusters",
    "s3": "object stores",
}
_HOLDER = re.compile(r"process (\d+) on (.*)")
_DEVICES = (
    "import json, jax; print(json.dumps([jax.default_backend(), list(map(str, jax.devices())), jax.__version__]))"
)
_CLUSTER = "import ray; ray.init(address='auto', log_to_driver=False, logging_level='ERROR'); print(ray.__version__)"
Answer = tuple[bool, str]  # whether it ended well, and its last line


def examine(out: Path, run: Path | None = None) -> list[Finding]:
    """All findings about this machine, the runs in `out`, and the bytes of `run` where one is given."""
    checks: list[Callable[[], Iterable[Finding]]] = [
        *_places(out, run),
        cores,
        lambda: writable("compilation cache", _cache_folder(), "Set JAX_COMPILATION_CACHE_DIR to a folder that can be"),
        lambda: writable("own runs", state_file().parent, "Set XDG_STATE_HOME to a folder that can be"),
        packages,
        devices,
        cluster,
        lambda: clock(Path(__file__)),
    ]
    return [finding for look in checks for finding in look()]


def _places(out: Path, run: Path | None) -> list[Callable[[], Iterable[Finding]]]:
    if (place := of(out)) is None:
        return [lambda: disk(out), lambda: network(out), lambda: locks(out), lambda: archives(out, run)]
    looks: list[Callable[[], Iterable[Finding]]] = [lambda: store(out), lambda: disk(place.root.parent)]
    return [*looks, *([lambda: archives(out, run)] if run else [])]


def store(out: Path) -> Iterable[Finding]:
    """Whether the object store of `out` answers, takes these credentials, and heeds conditions of a put."""
    place = of(out)
    assert place is not None
    key = f"{place.key}/evometa-doctor".lstrip("/")
    name = f"s3://{place.store.bucket}/{place.key}".rstrip("/")
    hasty = Store(place.store.bucket, patience=5.0, timeout=10.0)
    try:
        hasty.list(place.key, most=1)
        hasty.put(key, b"")
        conditions(hasty, key)
        hasty.delete(key)
    except EvometaError as error:
        found, _, fix = str(error).partition(". ")
        yield Finding("store", "problem", found, fix or f"Start the store, or correct {' or '.join(ENDPOINTS)}")
        return
    yield Finding("store", "ok", f"{name} at {endpoint() or 'AWS'} takes conditional puts", "")


def locks(out: Path, table: Path = Path("/proc/locks")) -> Iterable[Finding]:
    """Runs in `out` that a process left without saying so. Asks the kernel's table: to try a lock could disturb."""
    try:
        held = {line.split()[5].rsplit(":", 1)[1] for line in table.read_text().splitlines() if " FLOCK " in line}
    except (OSError, IndexError):
        yield Finding("locks", "note", f"not known: {table} cannot be read", "")
        return
    left, busy = [], []
    for path in folder.list_runs(out):
        lock = path / "run.lock"
        try:
            holder = _HOLDER.fullmatch(lock.read_text(errors="replace").strip()) if lock.is_file() else None
            inode = str(lock.stat().st_ino) if holder else ""
        except OSError:
            continue
        if holder and inode in held:
            busy.append(path.name)
        elif holder and holder[2] != os.uname().nodename:
            yield Finding(
                "locks",
                "problem",
                f"{path.name} says that process {holder[1]} on {holder[2]} runs it, which cannot be told from here",
                f"Look there; if nothing runs it, type: evometa resume {path}",
            )
        elif holder:
            left.append(path)
            yield Finding(
                "locks",
                "problem",
                f"{path.name} was left by process {holder[1]}, which is gone (killed, or the machine stopped)",
                f"evometa resume {path}",
            )
    if not left:
        yield Finding("locks", "ok", f"{len(busy)} runs under way" if busy else "no run was left", "")


def archives(out: Path, run: Path | None) -> Iterable[Finding]:
    """Runs whose record, diary or newest rows cannot be read; of `run`, every byte is checked."""
    whole = True
    for path in [run] if run else folder.list_runs(out):
        cure = f"evometa archive check {path}"
        try:
            folder.read_record(path)
            events.diary(path)
            Archive(path).generations()
            problems = check(path).problems if run else []
        except (EvometaError, OSError) as error:
            problems = [str(error)]
        for problem in problems:
            whole = False
            yield Finding("archives", "problem", problem, cure)
    if whole:
        count = 1 if run else len(folder.list_runs(out))
        yield Finding("archives", "ok", f"{count} read" if count else f"none in {out}", "")


def writable(name: str, place: Path | None, cure: str) -> Iterable[Finding]:
    """Whether a folder can be written to; it is made where it is missing."""
    if place is None:
        yield Finding(name, "note", "switched off", "")
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place, prefix=".evometa-doctor-"):
            pass
        yield Finding(name, "ok", str(place), "")
    except OSError as error:
        yield Finding(name, "problem", f"{place} cannot be written: {error.strerror}", cure)


def packages(
    requires: Iterable[str] | None = None, version: Callable[[str], str] = metadata.version
) -> Iterable[Finding]:
    """Packages that are missing or too old, of evometa itself and by extra."""
    wanted: dict[str, list[tuple[str, str]]] = {}
    for line in metadata.requires("evometa") or () if requires is None else requires:
        needs, _, marker = line.partition(";")
        found = re.match(r"\s*([A-Za-z0-9_.-]+)(?:\[.*\])?\s*(?:.*?>=\s*([0-9.]+))?", needs)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if found and found[1] != "evometa":
            wanted.setdefault(extra[1] if extra else "", []).append((found[1], found[2] or "0"))
    for extra, names in wanted.items():
        if extra == "dev":
            continue
        have = {name: _installed(name, version) for name, _ in names}
        missing = [name for name in have if have[name] is None]
        old = [f"{n} {have[n]}, expected {least} or later" for n, least in names if have[n] and _less(have[n], least)]
        install = f"pip install --upgrade 'evometa[{extra}]'" if extra else "pip install --upgrade evometa"
        title = f"extra {extra}" if extra else "packages"
        what = f", for {EXTRAS[extra]}" if extra in EXTRAS else ""
        if old or (missing and (not extra or len(missing) < len(have))):
            yield Finding(title, "problem", "; ".join([*old, *(f"{name} is missing" for name in missing)]), install)
        elif missing:
            yield Finding(title, "note", f"not installed{what}", install)
        else:
            yield Finding(title, "ok", ", ".join(f"{name} {have[name]}" for name in have), "")


def devices(ask: Callable[[str], Answer] | None = None, gpu: Path = Path("/dev/nvidia0")) -> Iterable[Finding]:
    """What JAX computes on, asked of another process: a broken driver hangs or kills whoever asks."""
    ended, said = (ask or _python)(_DEVICES)
    try:
        platform, names, version = json.loads(said)
    except ValueError:
        ended = False
    if not ended:
        yield Finding("jax", "problem", f"JAX does not start: {said}", "Try JAX_PLATFORMS=cpu, or install jax again")
    elif platform == "cpu" and gpu.exists() and not os.environ.get("JAX_PLATFORMS"):
        found = f"jax {version} computes on the CPU, and there is a GPU"
        yield Finding("jax", "problem", found, "pip install 'jax[cuda13]', or set JAX_PLATFORMS=cpu")
    else:
        yield Finding("jax", "ok", f"jax {version} on {platform}: {', '.join(names[:8])}", "")


def cluster(
    environment: Mapping[str, str] = os.environ, ask: Callable[[str], Answer] | None = None
) -> Iterable[Finding]:
    """Whether the Ray cluster of RAY_ADDRESS takes this process: same versions of Ray and Python, right token."""
    address = environment.get("RAY_ADDRESS")
    if not address:
        return
    ended, said = (ask or _python)(_CLUSTER.replace("'auto'", repr(address)))
    if ended:
        yield Finding("ray", "ok", f"{address} takes this process, ray {said}", "")
    elif "No module named 'ray'" in said:
        yield Finding("ray", "problem", f"RAY_ADDRESS is {address}, and ray is missing", "pip install 'evometa[ray]'")
    elif "mismatch" in said.lower():
        cure = "Install the same versions of Python and ray here and on every node (pip install ray==VERSION)"
        yield Finding("ray", "problem", f"{address}: {said}", cure)
    elif refuses_token(said):
        found, _, cure = ANOTHER_TOKEN.partition(". ")
        yield Finding("ray", "problem", f"{address}: {found}", cure)
    else:
        cure = "Start it (ray start --head), or unset RAY_ADDRESS"
        yield Finding("ray", "problem", f"{address} does not answer: {said}", cure)


def _python(code: str) -> Answer:
    """What a Python of its own says to that code: its last line, of errors the telling one where it failed."""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False, f"no answer within {SECONDS:g} s"
    except OSError as error:
        return False, str(error)
    telling = [line for line in done.stderr.splitlines() if "mismatch" in line.lower()]
    telling = telling or [line for line in done.stderr.splitlines() if refuses_token(line)]
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"ended with status {done.returncode}"
    return done.returncode == 0, telling[-1].strip() if telling and done.returncode else last


def _cache_folder() -> Path | None:
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) if os.environ["JAX_COMPILATION_CACHE_DIR"] else None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "evometa" / f"jax-{machine.processor()}"


def _installed(name: str, version: Callable[[str], str]) -> str | None:
    try:
        return version(name)
    except metadata.PackageNotFoundError:
        return None


def _less(version: str | None, least: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(word) for word in re.findall(r"\d+", text.split("+")[0])[:3]]

    return numbers(version or "0") < numbers(least)
