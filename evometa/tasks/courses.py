"""Carts on hilly courses: a controller is the solver, and the course belongs to the candidate too.

A candidate holds a course (`environment`: how steep, how rough, how sticky, how windy, 0 to 1 each) and a controller (a
small network). Train has one domain, `own`, in which the candidate drives the course that it brings along: what
`poet` searches. An ordinary strategy that may choose its own exam makes it easy, which its score on the fixed courses
shows: validation has four of them, test eight sealed ones, and there the candidate's own course does not count.

A course is a road of length 1 whose slope is a sum of two waves, with phases drawn anew for every judging. The motor
is weaker than the steepest hills: they need momentum. Loss, 0 to 1: 1 - 0.8 progress - 0.2 of the time that is left at
the goal. Metric: `progress`. Nothing is learned before the judging.

Sources: POET (Wang et al. 2019, arXiv 1901.01753) on bipedal walkers; the weak motor is that of the mountain car (Moore
1990), with hills in the place of one valley.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from evometa.column import real, weights
from evometa.contract import Domain, Objective, Split, Task
from evometa.errors import ConfigError, did_you_mean
from evometa.space import Candidate, Space

QUERY = "course"
ENVIRONMENT: tuple[str, ...] = ("hills", "rough", "sticky", "windy")
EASY: dict[str, float] = dict.fromkeys(ENVIRONMENT, 0.1)
# The fixed courses, in the order of ENVIRONMENT.
VALIDATION = {
    "rolling": (0.5, 0.1, 0.1, 0.1), "uneven": (0.3, 0.6, 0.1, 0.1), "muddy": (0.3, 0.1, 0.6, 0.1),
    "breezy": (0.3, 0.1, 0.1, 0.6),
}  # fmt: skip
TEST = {
    "steep": (0.8, 0.1, 0.1, 0.1), "steep-rough": (0.7, 0.8, 0.1, 0.1), "steep-sticky": (0.7, 0.1, 0.6, 0.1),
    "steep-windy": (0.7, 0.1, 0.1, 0.6), "rough-sticky": (0.4, 0.9, 0.6, 0.1), "rough-windy": (0.4, 0.9, 0.1, 0.6),
    "sticky-windy": (0.4, 0.2, 0.6, 0.6), "everything": (0.6, 0.6, 0.5, 0.5),
}  # fmt: skip
HARD: dict[str, float] = dict(zip(ENVIRONMENT, TEST["everything"], strict=True))
HELD: dict[str, dict[str, float] | None] = {"no": None, "easy": EASY, "hard": HARD}

SEEN, HIDDEN = 8, 8  # what the controller is told, and its hidden units
STEP = 0.05  # seconds per step
GRAVITY, MOTOR, DRAG, WIND = 0.2, 0.08, 0.6, 0.05  # accelerations per unit, in road lengths per second squared
AHEAD = (0.02, 0.05, 0.1)  # how far along the road slopes are seen, in road lengths

PROFILES: dict[str, dict[str, Any]] = {
    "smoke": {"task": {"steps": 60, "roads": 2}, "generations": 6, "population": 9, "strategy": "poet"},
    "standard": {"task": {}, "generations": 300, "population": 64, "strategy": "poet"},
    "full": {"task": {"roads": 32}, "generations": 2000, "population": 100, "strategy": "poet"},
}


def courses(*, held: str = "no", steps: int = 200, roads: int = 16) -> Task:
    """Controllers of carts, and the courses that they drive, as a task.

    `held`: `no`, the candidate brings its course; `easy` or `hard`, every candidate drives that one. `steps` of a
    drive; `roads`: phases that a judging averages over. Raises `ConfigError` for an unknown word and sizes below 1.
    """
    if held not in HELD:
        words = ", ".join(HELD)
        raise ConfigError(f"courses: expected held out of {words}; got {held!r}.{did_you_mean(str(held), HELD)}")
    for label, number in (("steps", steps), ("roads", roads)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"courses: expected {label} as a whole number >= 1, got {number!r}")
    sizes = {"hidden": (SEEN, HIDDEN), "bias": (HIDDEN,), "out": (HIDDEN,)}
    scales = {"hidden": SEEN**-0.5, "bias": 0.5, "out": 1.0}
    space = Space(
        {
            "environment": {name: real(0.0, 1.0) for name in ENVIRONMENT},
            "solver": {name: weights(shape, scale=scales[name]) for name, shape in sizes.items()},
        }
    )
    solver = {name: np.zeros(shape) for name, shape in sizes.items()}
    solver["bias"][0], solver["out"][0] = 1.0, 2.0  # nearly full power ahead, whatever is seen
    course = HELD[held]
    if course is not None:
        space = space.hold({f"environment.{name}": value for name, value in course.items()})
    fixed = {**VALIDATION, **TEST}
    return Task(
        name="courses",
        space=space,
        domains=(
            Domain("own", _nothing, {QUERY: partial(_query, None)}, {"kind": "own"}),
            *(
                Domain(name, _nothing, {QUERY: partial(_query, name)}, {"kind": "fixed"}, name in TEST)
                for name in fixed
            ),
        ),
        fit=fit,
        judge=partial(judge, steps=steps, roads=roads),
        objective=Objective(QUERY),
        baseline={"environment": dict(EASY if course is None else course), "solver": solver},
        split=Split(("own",), tuple(VALIDATION), tuple(TEST)),
        controls={"easy": {"held": "easy"}, "hard": {"held": "hard"}},
        source=__name__,
    )


def fit(key: Any, candidate: Candidate, support: Any) -> Candidate:
    """The candidate as it is: nothing is learned."""
    del key, support
    return candidate


def judge(key: Any, learned: Candidate, query: dict[str, Any], *, steps: int, roads: int) -> dict[str, Any]:
    """`loss` and `progress` on the candidate's own course, or on the query's, averaged over roads."""
    own = jnp.stack([jnp.asarray(learned["environment"][name], jnp.float32) for name in ENVIRONMENT])
    course = jnp.where(query["own"] > 0, own, query["environment"])
    phases = jax.random.uniform(key, (roads, 2), maxval=2.0 * np.pi)
    progress, left = jax.vmap(lambda road: drive(learned["solver"], course, road, steps))(phases)
    return {"loss": jnp.mean(1.0 - 0.8 * progress - 0.2 * left), "progress": jnp.mean(progress)}


def slope(course: Any, phases: Any, place: Any) -> Any:
    """How steep the road is at a place (0 at its start, 1 at the goal), uphill positive."""
    waves = 2.0 + 4.0 * course[1]  # hills on the road
    turn = 2.0 * np.pi * place
    return course[0] * (0.7 * jnp.sin(waves * turn + phases[0]) + 0.5 * jnp.sin(2.3 * waves * turn + phases[1]))


def drive(solver: dict[str, Any], course: Any, phases: Any, steps: int) -> tuple[Any, Any]:
    """`(progress, time left at the goal)` of one drive, both 0 to 1."""

    def one(state: Any, number: Any) -> tuple[Any, None]:
        place, speed, far, left = state
        seen = [slope(course, phases, place + ahead) for ahead in (0.0, *AHEAD)]
        seen = jnp.stack([*seen, 10.0 * speed, place, course[2], course[3]])
        hidden = jnp.tanh(seen @ solver["hidden"] + solver["bias"])
        power = jnp.tanh(hidden @ solver["out"])
        pull = GRAVITY * slope(course, phases, place) + WIND * course[3] + DRAG * course[2] * speed
        speed = speed + STEP * (MOTOR * power - pull)
        place = place + STEP * speed
        # A wall at the start: whoever rolls back further stops there.
        speed, place = jnp.where(place < -0.2, 0.0, speed), jnp.maximum(place, -0.2)
        left = jnp.where((place >= 1.0) & (far < 1.0), 1.0 - (number + 1) / steps, left)
        return (place, speed, jnp.maximum(far, jnp.minimum(place, 1.0)), left), None

    zero = jnp.float32(0.0)
    (_, _, far, left), _ = jax.lax.scan(one, (zero, zero, zero, zero), jnp.arange(steps))
    return far, left


def _nothing() -> dict[str, np.ndarray]:
    return {"nothing": np.zeros((), np.float32)}


def _query(name: str | None) -> dict[str, np.ndarray]:
    course = (0.0,) * len(ENVIRONMENT) if name is None else {**VALIDATION, **TEST}[name]
    return {"own": np.asarray(name is None, np.float32), "environment": np.asarray(course, np.float32)}
