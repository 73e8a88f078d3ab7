"""How JAX sees this machine: host devices, chosen before it starts or not at all, and a cache of compiled programs."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

_MOST = 64


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_host_devices(count: int | None = None) -> None:
    """Let JAX see `count` CPU devices (default: one per core). Call it before anything touches JAX.

    A choice that the environment made (JAX_NUM_CPU_DEVICES, XLA_FLAGS) stands where no count is given.
    """
    spare_threads()
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if count is None and chosen:
        return
    import jax

    jax.config.update("jax_num_cpu_devices", min(count or cores(), _MOST))


def spare_threads() -> None:
    """Give XLA's pool four times as many threads as there are cores; no effect once JAX has started.

    A device's program occupies a thread of the pool, and batched linear algebra inside it (CMA-ES below another
    level, a task's own solve) waits for others: with as many devices as threads they all wait for ever. Bits are
    the same. NPROC is XLA's own variable for it; one that is set stands.
    """
    os.environ.setdefault("NPROC", str(4 * max(cores(), 2)))


def keep_compilations() -> None:
    """Keep compiled programs in the user's cache folder, so that a resume or an unsealing does not compile again.

    A program from the cache gives the same bits. One folder per kind of processor: programs are made for its
    instructions. JAX_COMPILATION_CACHE_DIR says otherwise; an empty one switches it off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "evometa" / f"jax-{processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a read-only home costs the cache, nothing else
    if os.access(folder, os.W_OK):
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def processor() -> str:
    """A word for this kind of processor: programs, and so bits, are made for its instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        words = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        words = ""
    return hashlib.sha256(f"{platform.machine()} {platform.processor()} {words}".encode()).hexdigest()[:12]


def numerics() -> dict[str, Any]:
    """What of this machine and of JAX's settings can change a number, as JSON.

    The number of host devices is not here: the plan says how many are used.
    """
    import jax

    settings = ("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl")
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    return {
        "processor": processor(),
        **{name: getattr(jax.config, name) for name in settings},
        "XLA_FLAGS": sorted(flags),
    }


def use_devices_of(run_path: Path) -> None:
    """The same devices as the run on disk: its bits depend on them."""
    from evometa.folder import read_record

    plan = read_record(run_path)["plan"]
    use_host_devices(plan["devices"] if plan["platform"] == "cpu" else None)
    keep_compilations()
