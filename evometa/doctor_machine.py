"""The checks of `evometa doctor` that look at the machine alone: disk, file system, cores, clock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from evometa.machine import cores as own_cores

LEAST_BYTES = 1 << 30
LEAST_FILES = 10_000
# File systems whose locks, hard links or fsync may mean less than a local disk's.
NETWORK = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "beegfs", "gpfs", "9p", "davfs"),
    *("fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "fuse.ceph", "virtiofs"),
}
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC", "JAX_NUM_CPU_DEVICES")
_MOST_PER_CORE = 4  # XLA's pool is given four threads for each core (machine.py), and idles most of the time


class Finding(NamedTuple):
    """What a check found; `status`: ok, note (nothing to do) or problem, then with its `fix`."""

    check: str
    status: str
    found: str
    fix: str


def disk(out: Path) -> Iterable[Finding]:
    """Room for bytes and files where the runs are, or will be."""
    room = os.statvfs(_existing(out))
    free, files = room.f_bavail * room.f_frsize, room.f_favail
    said = f"{free / 1e9:.3g} GB free for {out}"
    if free < LEAST_BYTES:
        yield Finding("disk", "problem", f"{said}, expected {LEAST_BYTES / 1e9:.2g}", "Free some, or use another --out")
    elif room.f_files and files < LEAST_FILES:
        cure = "Remove files, or put many small parts together: evometa archive compact RUN"
        yield Finding("disk", "problem", f"{files} more files fit into {out}, expected {LEAST_FILES}", cure)
    else:
        yield Finding("disk", "ok", said, "")


def network(out: Path, mounts: Path = Path("/proc/self/mounts")) -> Iterable[Finding]:
    """Whether the runs lie on a file system of another machine."""
    place = _existing(out).resolve()
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        yield Finding("file system", "note", f"not known: {mounts} cannot be read", "")
        return
    points = [(line[1].encode().decode("unicode_escape"), line[2]) for line in lines if len(line) > 2]
    around = [(len(point), kind) for point, kind in points if place.is_relative_to(point)]
    kind = max(around)[1] if around else "unknown"
    if kind in NETWORK:
        yield Finding(
            "file system",
            "problem",
            f"{out} lies on {kind}: locks, links and forced writes may not hold there what they promise",
            "Keep runs on a local disk (--out DIR) and copy them when they are finished, or use an object store",
        )
    else:
        yield Finding("file system", "ok", f"{out} lies on {kind}", "")


def cores(
    load: float | None = None,
    quota: Path = Path("/sys/fs/cgroup/cpu.max"),
    count: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Iterable[Finding]:
    """Whether more threads want the cores than there are: other processes', a quota's, or the environment's doing."""
    count = own_cores() if count is None else count
    load = os.getloadavg()[0] if load is None else load
    fine = True
    if load > 1.5 * count:
        fine = False
        found = f"a load of {load:.1f} on {count} cores: others compute here"
        yield Finding("cores", "problem", found, "Wait for them (top), or run with fewer --workers")
    allowed = _allowed(quota)
    if allowed is not None and allowed < 0.9 * count:
        fine = False
        yield Finding(
            "cores",
            "problem",
            f"{count} cores are visible, and a quota allows {allowed:g}: threads will wait for each other",
            f"taskset --cpu-list 0-{max(1, int(allowed)) - 1} evometa ..., or ask for whole cores",
        )
    for name in _THREADS:
        text = environment.get(name, "")
        if text.isdigit() and int(text) > _MOST_PER_CORE * max(count, 2):
            fine = False
            yield Finding("cores", "problem", f"{name}={text} for {count} cores", f"unset {name}")
    if fine:
        yield Finding("cores", "ok", f"{count} cores, load {load:.1f}", "")


def clock(written: Path, now: float | None = None) -> Iterable[Finding]:
    """Whether the clock stands before what it has seen already. Nothing that is computed depends on it."""
    now = time.time() if now is None else now
    said = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(max(0.0, now)))
    if now < written.stat().st_mtime - 86_400:
        found = f"the clock says {said}, which is before evometa was installed"
        yield Finding("clock", "problem", found, "Set it (timedatectl set-ntp true): the diary of a run names times")
    else:
        yield Finding("clock", "ok", said, "")


def _allowed(quota: Path) -> float | None:
    try:
        most, period = quota.read_text().split()
        return None if most == "max" else int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
