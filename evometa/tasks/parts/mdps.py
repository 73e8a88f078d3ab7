"""Small Markov decision processes as arrays, drawn from families; their best values are known exactly.

Sources: random MDPs ("Garnets", Archibald, McKinnon and Thomas 1995), RiverSwim (Strehl and Littman 2008), the deep sea
and catch of bsuite (Osband et al. 2020), the windy grid and the cliff of Sutton and Barto (2018), the four rooms of
Sutton, Precup and Singh (1999), the frozen lake of Gymnasium; smaller, larger or with other numbers than
there: the functions below are the definitions.

Four actions everywhere: families with fewer repeat some. Rewards of an instance are multiplied by a number between
0.1 and 10, and most carry noise, so that a rule for one scale, or for rewards without noise, does not get far.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

ACTIONS = 4
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # of the grids: row, column
DISCOUNTS = (0.3, 0.6, 0.9, 0.95)  # far apart: what holds for one does not hold for another
SELDOM = 0.15  # least chance that an entry is tried in a sweep
LEAST_GAP = 0.05  # instances on which the best policy gains less over a random one, per unit of reward, are drawn anew

Outcome = tuple[float, int, float, bool]  # probability, next state, reward, does the episode end?
Outcomes = Callable[[int, int], Sequence[Outcome]]  # of a state and an action


class Plain(NamedTuple):
    """An instance as a family gives it: where it starts, what actions do, how much the future counts."""

    states: int
    start: Any  # [states]: weights
    outcomes: Outcomes
    discount: float


class Family(NamedTuple):
    """A kind of MDP."""

    draw: Callable[[np.random.Generator], Plain]
    text: str
    limit: int  # episodes are cut after so many steps; that is no end, the future still counts


# --- families that drive the search --------------------------------------------------------------------


def _ring(luck: np.random.Generator) -> Plain:
    states = int(luck.integers(8, 17))
    reward = luck.normal(size=(states, ACTIONS))
    slip = float(luck.choice([0.0, 0.1]))

    def outcomes(s: int, a: int) -> list[Outcome]:
        place = (s + (-2, -1, 1, 2)[a]) % states
        return [(1.0 - slip, place, float(reward[s, a]), False), (slip, s, float(reward[s, a]), False)]

    return Plain(states, np.ones(states), outcomes, float(luck.choice(DISCOUNTS)))


def _layers(luck: np.random.Generator) -> Plain:
    depth, width = int(luck.integers(3, 6)), 4
    after = luck.integers(0, width, (depth, width, ACTIONS))
    reward = luck.normal(size=(depth, width, ACTIONS))
    leave = luck.random((depth, width, ACTIONS)) < 0.15  # some ways end before the last layer

    def outcomes(s: int, a: int) -> list[Outcome]:
        layer, place = divmod(s, width)
        if layer == depth - 1 or leave[layer, place, a]:
            return [(1.0, s, float(reward[layer, place, a]), True)]
        return [(1.0, (layer + 1) * width + int(after[layer, place, a]), float(reward[layer, place, a]), False)]

    states = depth * width
    return Plain(states, np.arange(states) < width, outcomes, float(luck.choice(DISCOUNTS)))


def _garnet(least: int, most: int, branches: int) -> Callable[[np.random.Generator], Plain]:
    def draw(luck: np.random.Generator) -> Plain:
        states = int(luck.integers(least, most + 1))
        share = luck.dirichlet(np.ones(branches), (states, ACTIONS))
        after = luck.integers(0, states, (states, ACTIONS, branches))
        worth = luck.normal(size=states)  # of entering a state

        def outcomes(s: int, a: int) -> list[Outcome]:
            return [(float(share[s, a, b]), int(n), float(worth[n]), False) for b, n in enumerate(after[s, a])]

        return Plain(states, np.ones(states), outcomes, float(luck.choice(DISCOUNTS)))

    return draw


def _maze(luck: np.random.Generator) -> Plain:
    free = luck.random((4, 5)) > 0.15
    goal, pit = luck.choice(np.flatnonzero(free), 2, replace=False)
    ends = {int(goal): 1.0, int(pit): -1.0}
    return _grid(free, ends, start=None, cost=float(luck.choice([0.0, 0.05])), discount=0.9)


def _stop(luck: np.random.Generator) -> Plain:
    states = int(luck.integers(8, 17))
    pay = luck.normal(size=states)
    after = luck.integers(0, states, (states, 2, 2))  # the two ways of waiting lead to one of two offers

    def outcomes(s: int, a: int) -> list[Outcome]:
        if a < ACTIONS // 2:
            return [(1.0, s, float(pay[s]), True)]
        return [(0.5, int(n), 0.0, False) for n in after[s, a - ACTIONS // 2]]

    return Plain(states, np.ones(states), outcomes, float(luck.choice(DISCOUNTS)))


# --- families that validate ------------------------------------------------------------------------------


def _chain(least: int, most: int) -> Callable[[np.random.Generator], Plain]:
    def draw(luck: np.random.Generator) -> Plain:
        length = int(luck.integers(least, most + 1))
        forward = luck.random(length) < 0.5  # which half of the actions leads on, by state
        slip = float(luck.choice([0.0, 0.1]))
        small = luck.uniform(0.0, 0.03, length)

        def outcomes(s: int, a: int) -> list[Outcome]:
            on = (1.0, length, 1.0, True) if s == length - 1 else (1.0, s + 1, 0.0, False)
            back = (1.0, max(s - 1, 0), float(small[s]), False)
            likely, other = (on, back) if (a < ACTIONS // 2) == forward[s] else (back, on)
            return [(1.0 - slip, likely[1], likely[2], likely[3]), (slip, other[1], other[2], other[3])]

        return Plain(length, np.eye(length)[0], outcomes, float(luck.choice([0.9, 0.95])))

    return draw


def _deep_sea(least: int, most: int) -> Callable[[np.random.Generator], Plain]:
    def draw(luck: np.random.Generator) -> Plain:
        size = int(luck.integers(least, most + 1))
        right = luck.random((size, size)) < 0.5

        def outcomes(s: int, a: int) -> list[Outcome]:
            row, column = s // size, s % size
            goes = (a < ACTIONS // 2) == right[row, column]
            reward = (-0.01 / size if goes else 0.0) + (1.0 if goes and row == column == size - 1 else 0.0)
            column = min(column + 1, size - 1) if goes else max(column - 1, 0)
            return [(1.0, min(row + 1, size - 1) * size + column, reward, row == size - 1)]

        return Plain(size * size, np.eye(size * size)[0], outcomes, 0.97)

    return draw


def _river(luck: np.random.Generator) -> Plain:
    length = int(luck.integers(5, 8))

    def outcomes(s: int, a: int) -> list[Outcome]:
        if a < ACTIONS // 2:
            return [(1.0, max(s - 1, 0), 0.01 if s == 0 else 0.0, False)]
        if s == length - 1:
            return [(0.6, s, 1.0, False), (0.4, s - 1, 0.0, False)]
        return [(0.35, s + 1, 0.0, False), (0.6, s, 0.0, False), (0.05, max(s - 1, 0), 0.0, False)]

    return Plain(length, np.arange(length) < 2, outcomes, float(luck.choice([0.9, 0.95])))


def _fork(luck: np.random.Generator) -> Plain:
    # One choice, then a road: long roads pay more, so that the best one depends on the discount.
    lengths = luck.permutation(np.arange(1, 6))[:ACTIONS]
    discount = float(luck.choice(DISCOUNTS))
    pay = luck.uniform(0.75, 1.0, ACTIONS) * 0.85 ** -lengths.astype(float)
    road = 1 + np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def outcomes(s: int, a: int) -> list[Outcome]:
        if s == 0:
            return [(1.0, int(road[a]), 0.0, False)]
        here = int(np.searchsorted(road, s, side="right")) - 1
        last = s == road[here] + lengths[here] - 1
        # Half of the actions only wait; the choice at the end counts as well.
        if a >= ACTIONS // 2:
            return [(1.0, s, 0.0, False)]
        return [(1.0, s, float(pay[here]), True)] if last else [(1.0, s + 1, 0.0, False)]

    states = 1 + int(lengths.sum())
    return Plain(states, np.eye(states)[0], outcomes, discount)


# --- families that stay sealed ---------------------------------------------------------------------------


def _windy(luck: np.random.Generator) -> Plain:
    rows, columns = 4, 6
    wind = luck.integers(0, 2, columns)
    goal = int(luck.integers(0, rows)) * columns + columns - 1
    free = np.ones((rows, columns), bool)
    return _grid(free, {goal: 1.0}, start=None, cost=0.02, discount=0.95, wind=wind)


def _catch(luck: np.random.Generator) -> Plain:
    rows, columns = 3, 3
    drift = int(luck.integers(0, columns)) - 1  # where the ball goes on its way

    def number(row: int, ball: int, paddle: int) -> int:
        return (row * columns + ball) * columns + paddle

    def outcomes(s: int, a: int) -> list[Outcome]:
        row, ball, paddle = s // columns**2, s // columns % columns, s % columns
        paddle = min(max(paddle + (-1, 0, 1, 0)[a], 0), columns - 1)
        ball = (ball + drift) % columns
        if row == rows - 1:
            return [(1.0, s, 1.0 if ball == paddle else -1.0, True)]
        return [(1.0, number(row + 1, ball, paddle), 0.0, False)]

    states = rows * columns**2
    return Plain(states, np.arange(states) < columns**2, outcomes, 0.95)


def _frozen(luck: np.random.Generator) -> Plain:
    side = int(luck.integers(4, 7))
    holes = luck.random(side * side) < 0.15
    holes[[0, -1]] = False
    ends = {int(cell): 0.0 for cell in np.flatnonzero(holes)} | {side * side - 1: 1.0}
    return _grid(np.ones((side, side), bool), ends, start=0, cost=0.0, discount=0.97, slip=2 / 3)


def _rooms(luck: np.random.Generator) -> Plain:
    side = 8
    free = np.ones((side, side), bool)
    wall = int(luck.integers(3, 5))
    free[wall], free[:, wall] = False, False
    for half in (slice(0, wall), slice(wall + 1, side)):  # a door in each of the four walls
        free[wall, luck.integers(half.start, half.stop)] = True
        free[luck.integers(half.start, half.stop), wall] = True
    goal = int(luck.choice(np.flatnonzero(free)))
    return _grid(free, {goal: 1.0}, start=None, cost=0.0, discount=0.95, slip=0.2)


def _cliff(luck: np.random.Generator) -> Plain:
    rows, columns = 4, int(luck.integers(8, 13))
    last = (rows - 1) * columns
    ends = {last + column: -1.0 for column in range(1, columns - 1)} | {rows * columns - 1: 1.0}
    return _grid(np.ones((rows, columns), bool), ends, start=last, cost=0.02, discount=0.97)


def _replacement(luck: np.random.Generator) -> Plain:
    ages = int(luck.integers(20, 41))
    wear, price = luck.uniform(1.0, 2.0), luck.uniform(0.5, 1.5)

    def outcomes(s: int, a: int) -> list[Outcome]:
        # Run slowly (0), at full speed (1), overhaul (2) or replace (3) a machine that wears out.
        speed, cost, left = ((0.5, 0.0, s), (1.0, 0.0, s), (0.5, 0.4 * price, s // 2), (0.0, price, 0))[a]
        reward = speed * (1.0 - (left / ages) ** wear) - cost
        steps = (1, 2) if speed < 1.0 else (2, 4)
        return [(0.5, min(left + step, ages - 1), reward, False) for step in steps]

    return Plain(ages, np.ones(ages), outcomes, 0.95)


def _grid(
    free: np.ndarray, ends: dict[int, float], *, start: int | None, cost: float, discount: float,
    slip: float = 0.0, wind: np.ndarray | None = None,
) -> Plain:  # fmt: skip
    """A grid of cells `[rows, columns]`; entering one of `ends` pays and ends. `start=None`: any free cell.

    `slip`: with this probability one goes to one of the two sides. `wind`: rows that one is blown up, by column.
    """
    rows, columns = free.shape

    def move(s: int, direction: int) -> tuple[int, float, bool]:
        row, column = divmod(s, columns)
        blown = int(wind[column]) if wind is not None else 0
        for down, right in (MOVES[direction], (-blown, 0)):
            there = min(max(row + down, 0), rows - 1), min(max(column + right, 0), columns - 1)
            row, column = there if free[there] else (row, column)
        cell = row * columns + column
        return cell, ends.get(cell, 0.0) - cost, cell in ends

    def outcomes(s: int, a: int) -> list[Outcome]:
        sides = [(slip / 2, move(s, (a + turn) % 4)) for turn in (1, 3)] if slip else []
        return [(chance, *there) for chance, there in [(1.0 - slip, move(s, a)), *sides]]

    states = rows * columns
    open_ = [free.flat[s] and s not in ends for s in range(states)]
    return Plain(states, np.asarray(open_, float) if start is None else np.eye(states)[start], outcomes, discount)


FAMILIES: dict[str, Family] = {
    "ring": Family(_ring, "8 .. 16 states in a ring, a reward for every step", 25),
    "layers": Family(_layers, "3 .. 5 layers of 4 states, a reward for every step", 25),
    "garnet": Family(_garnet(8, 16, 3), "random MDP, 8 .. 16 states, 3 followers", 25),
    "maze": Family(_maze, "4 x 5 grid with walls, a goal and a pit", 25),
    "stop": Family(_stop, "8 .. 16 offers, take one or wait for the next", 25),
    "chain": Family(_chain(4, 7), "4 .. 7 states to walk, a small reward for going back", 25),
    "deep_sea": Family(_deep_sea(4, 5), "16 or 25 cells, one way down pays", 5),
    "river": Family(_river, "RiverSwim, 5 .. 7 states", 25),
    "fork": Family(_fork, "four roads of unlike length and pay", 25),
    "catch": Family(_catch, "3 rows, 3 columns: be where the ball lands", 5),
    "windy": Family(_windy, "4 x 6 grid with wind", 100),
    "frozen": Family(_frozen, "frozen lake, 4 x 4 .. 6 x 6, slipping two times in three", 100),
    "rooms": Family(_rooms, "four rooms, 8 x 8, slipping one time in five", 100),
    "cliff": Family(_cliff, "cliff, 4 x 8 .. 4 x 12", 100),
    "deep_sea_large": Family(_deep_sea(6, 8), "36 .. 64 cells, one way down pays", 8),
    "chain_long": Family(_chain(10, 16), "10 .. 16 states to walk", 100),
    "garnet_large": Family(_garnet(40, 60, 5), "random MDP, 40 .. 60 states, 5 followers", 100),
    "replacement": Family(_replacement, "when to replace a machine, 20 .. 40 ages", 100),
}


# --- arrays ------------------------------------------------------------------------------------------------


def instance(family: str, number: int, states: int, branches: int) -> dict[str, np.ndarray]:
    """An instance padded to `states` states and `branches` outcomes per action; drawn from a hash of its name.

    `next`, `chance`, `reward`, `on` [S, 4, B]: follower, its probability, the reward, 1 where the episode goes on (else
    0). `start` [S], `discount`, `noise` (standard deviation of rewards), `limit` and `states` (without the padding) [];
    `rate` [S, 4]: how often each action is tried where no one walks.
    """
    word = int.from_bytes(hashlib.sha256(f"{family}/{number}".encode()).digest()[:8], "little")
    luck = np.random.default_rng(word)
    scale, noise = 10.0 ** luck.uniform(-1.0, 1.0), float(luck.choice([0.0, 0.05, 0.1]))
    while True:
        made = _arrays(FAMILIES[family].draw(luck), states, branches)
        best, chance = solve(made)
        if best - chance >= LEAST_GAP:
            break
    made["reward"] = made["reward"] * scale
    rate = SELDOM ** luck.random((states, ACTIONS))
    made |= {"noise": np.asarray(noise * scale), "limit": np.asarray(FAMILIES[family].limit), "rate": rate}
    kinds = {"next": np.int32, "limit": np.int32, "states": np.int32}
    return {name: np.asarray(value, kinds.get(name, np.float32)) for name, value in made.items()}


def solve(made: dict[str, Any]) -> tuple[float, float]:
    """Expected discounted return from the start under the best policy and under the uniform one, in float64."""
    step, reward = model(made)
    start, states = made["start"], len(made["start"])

    def value(policy: np.ndarray) -> np.ndarray:  # policy [S, 4] -> [S]
        after = np.einsum("sa,sat->st", policy, step)
        return np.linalg.solve(np.eye(states) - after, (policy * reward).sum(axis=1))

    uniform = np.full((states, ACTIONS), 1.0 / ACTIONS)
    policy, chance = uniform, float(start @ value(uniform))
    for _ in range(10 * states):  # policy iteration ends; far sooner than this
        worth = reward + step @ value(policy)
        better = np.eye(ACTIONS)[np.argmax(np.round(worth, 12), axis=1)]
        if np.array_equal(better, policy):
            break
        policy = better
    return float(start @ value(policy)), chance


def model(made: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """`step` [S, 4, S], discounted probability of going on to each state, and `reward` [S, 4], expected; float64."""
    states = len(made["start"])
    chance = np.asarray(made["chance"], np.float64)
    step = np.zeros((states, ACTIONS, states))
    rows, actions, _ = np.indices(chance.shape)
    np.add.at(step, (rows, actions, made["next"]), chance * made["on"] * float(made["discount"]))
    return step, (chance * made["reward"]).sum(axis=2)


def _arrays(plain: Plain, states: int, branches: int) -> dict[str, Any]:
    shape = (states, ACTIONS, branches)
    made: dict[str, Any] = {
        "next": np.zeros(shape, np.int64),
        "chance": np.zeros(shape),
        "reward": np.zeros(shape),
        "on": np.zeros(shape),
        "discount": plain.discount,
    }
    made["chance"][:, :, 0] = 1.0  # states of the padding end at once; nothing leads there
    for s in range(plain.states):
        for a in range(ACTIONS):
            made["chance"][s, a] = 0.0
            for b, (chance, follower, reward, ended) in enumerate(plain.outcomes(s, a)):
                # What ends leads to a place that must exist, where nothing is read: the padding's or its own.
                made["next"][s, a, b] = s if ended else follower
                made["chance"][s, a, b], made["reward"][s, a, b], made["on"][s, a, b] = chance, reward, not ended
    start = np.zeros(states)
    start[: plain.states] = np.asarray(plain.start, float) / np.sum(plain.start)
    return {**made, "start": start, "states": plain.states}
