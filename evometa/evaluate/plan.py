"""The plan: how the same program is cut into chunks, devices and blocks.

Bits depend on it, so it is part of a run's resolved spec, is written to run.json, and a resume uses what
stands there. It follows from the task's traced program and the number of devices alone: no timing, so the
same spec on the same kind of machine always gets the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from evometa.errors import ConfigError, ResumeMismatch


@dataclass(frozen=True)
class Plan:
    """`chunk` candidates are computed together on each of `devices`; `block` generations are one file."""

    chunk: int = 1
    devices: int = 1
    block: int = 1
    platform: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("chunk", "devices", "block"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"plan: expected {name} to be a whole number >= 1, got {value!r}")

    def to_json(self) -> dict[str, Any]:
        """As plain data, for run.json."""
        return asdict(self)

    @classmethod
    def of_record(cls, said: Mapping[str, Any], run: Path) -> Plan:
        """The plan that stands in a run's record. Raises `ConfigError` where no plan of this evometa is like it."""
        names = [field.name for field in fields(cls)]
        if strange := [name for name in said if name not in names]:
            raise ConfigError(
                f"{run}: expected a plan of {', '.join(names)}, got one with {strange[0]!r} as well. If a newer"
                " evometa wrote it, update evometa"
            )
        return cls(**said)

    def require(self) -> None:
        """Raise `ResumeMismatch` where this process cannot give the plan."""
        import jax

        platform, count = jax.default_backend(), len(jax.devices())
        if platform != self.platform:
            raise ResumeMismatch(
                f"the plan wants {self.platform} devices, this process has {platform}: other hardware gives other bits."
                f" Set JAX_PLATFORMS={self.platform}, or start a fork with: evometa run --from RUN@GENERATION"
            )
        if count < self.devices:
            raise ResumeMismatch(
                f"the plan wants {self.devices} {self.platform} devices, this process has {count}."
                f' Call jax.config.update("jax_num_cpu_devices", {self.devices}) before JAX starts,'
                " or use the command line"
            )


# A chunk's live memory should stay in the processor's last cache. Within it, 8 or 16 candidates of `digits` ran 5 %
# faster than one; beyond it (the ladder, at 31 MB for one candidate) larger chunks ran slower.
_CACHE_BYTES = 8 << 20
_LARGEST_CHUNK = 32
# What one core did on this count of arithmetic for the built-in tasks (50 to 100 of the counted GFLOP a second;
# the count is generous). It only places a block between a tenth of a second and some seconds.
_FLOPS_PER_SECOND = 5e10
_BLOCK_SECONDS = 0.5
_LARGEST_BLOCK = 256
_BLOCK_BYTES = 64 << 20


def derive(*, flops: float, live_bytes: float, population: int, row_bytes: float, devices: int, platform: str) -> Plan:
    """Plan for a task whose one candidate (all its cells) costs that much; `row_bytes` is one archive row.

    On an accelerator: one device, one large chunk. On CPUs: chunks that fit a core's cache, over all host
    devices, without filler candidates where a divisor allows it.
    """
    if platform != "cpu":
        # One chunk may fill the card: 8 GiB of live memory is safe on every current one.
        chunk = max(1, min(population, int((8 << 30) / max(live_bytes, 1.0))))
        speed, devices = 1e12, 1
    else:
        share = -(-population // devices)
        limit = max(1, min(share, _LARGEST_CHUNK, int(_CACHE_BYTES / max(live_bytes, 1.0))))
        # The largest chunk among those that need the fewest filler candidates.
        chunk = min(range(1, limit + 1), key=lambda c: (-(-share // c) * c, -c))
        speed = _FLOPS_PER_SECOND * devices
    seconds = max(flops * population / speed, 1e-9)
    block = max(
        1, min(_LARGEST_BLOCK, int(_BLOCK_SECONDS / seconds), int(_BLOCK_BYTES / max(row_bytes * population, 1.0)))
    )
    return Plan(chunk, devices, 1 << (block.bit_length() - 1), platform)
