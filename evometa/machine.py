"""Host devices: how many parts JAX sees this machine's processor in. Chosen before JAX starts, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

_MOST = 64


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_host_devices(count: int | None = None) -> None:
    """Let JAX see `count` CPU devices (default: one per core). Call it before anything touches JAX.

    A choice that the environment made (JAX_NUM_CPU_DEVICES, XLA_FLAGS) stands where no count is given.
    """
    chosen = "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if count is None and chosen:
        return
    import jax

    jax.config.update("jax_num_cpu_devices", min(count or cores(), _MOST))


def use_devices_of(run_path: Path) -> None:
    """The same devices as the run on disk: its bits depend on them."""
    from evometa.folder import read_record

    plan = read_record(run_path)["plan"]
    use_host_devices(plan["devices"] if plan["platform"] == "cpu" else None)
