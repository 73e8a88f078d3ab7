"""Optuna's TPE and NSGA-II: the state is told history as plain arrays, a study is built from it in every ask.

TPE: Bergstra et al. 2011 (NIPS), multivariate form Falkner et al. 2018 (ICML). NSGA-II: Deb et al. 2002
(IEEE TEC 6:2). Optuna: Akiba et al. 2019 (KDD).

Why rebuilt: an Optuna study holds generators, clocks and pickles. One built anew from the told rows, with
one seed per generation from the ask key, resumes bit for bit; nothing live is kept between calls.

Columns go in as Optuna knows them best: real and log as floats in our [0, 1] coordinates (a log column is
even there already), integer and categorical as their bins, so that TPE does not waste candidates within
one bin. Weights are searched within +-4 initial scales, which a run from standard normals hardly leaves.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evometa.column import PLAIN
from evometa.errors import ConfigError
from evometa.space import Space
from evometa.strategies import parts
from evometa.strategies.catalogue import CATALOGUE
from evometa.types import Failure, Genome, Genomes, Parents, Prior, Scores, Strategy

WEIGHT_BOUND = 4.0
NEIGHBOURS = 256  # of how many best rows the likely-best is chosen


class State(NamedTuple):
    """Told rows (TPE: all of them, N grows; NSGA-II: the surviving P at most)."""

    generation: Any  # [] int32: generations asked so far
    start: Any  # [D] float32: member 0 of the first generation
    genomes: Any  # [N, D] float32
    fitness: Any  # [N, M] float32, failed rows at the worst finite value of their generation
    ids: Any  # [N, 2] int32: (generation, index)


def tpe(space: Space, population: int = 32, **hyperparameters: Any) -> Strategy:
    """Tree-structured Parzen estimator; every kind of column, one objective.

    Hyperparameters as in Optuna: `n_startup_trials` 10, `n_ei_candidates` 24, `multivariate` True. Scores
    of different generations are compared as they are. An ask takes longer as the history grows (about a
    quarter of a second for 16 candidates after 1000).
    """
    name = "tpe"
    given = parts.hyperparameters(name, CATALOGUE[name].defaults, hyperparameters)
    population = parts.check_population(name, population, CATALOGUE[name].minimum)
    parts.require(name, space, frozenset(PLAIN))
    parts.check_range(
        name, n_startup_trials=(given["n_startup_trials"], 1, 1e6), n_ei_candidates=(given["n_ei_candidates"], 1, 1e6)
    )  # fmt: skip
    columns = _Columns(space)

    def ask(key: Any, state: State) -> tuple[Genomes, Parents, State]:
        state = _host(state)
        with _quiet() as optuna:
            study = optuna.create_study(sampler=optuna.samplers.TPESampler(**given, seed=_seed(key)))
        study.add_trials([columns.trial(g, f) for g, f in zip(state.genomes, state.fitness, strict=True)])
        genomes = jnp.asarray(_ask_all(study, columns, state, population))
        best = np.argsort(state.fitness[:, 0], kind="stable")[: parts.ELITES]
        return genomes, _shared(state.ids[best], population, parts.ELITES), _next(state)

    def tell(key: Any, state: State, genomes: Genomes, scores: Scores) -> State:
        del key
        state = _host(state)
        fitness, any_ok = _settle(scores)
        if not any_ok:
            return state
        return state._replace(
            genomes=np.concatenate([state.genomes, np.asarray(genomes, np.float32)]),
            fitness=np.concatenate([state.fitness, fitness[:, :1]]),
            ids=np.concatenate([state.ids, _ids(state, population)]),
        )

    def recommend(state: State) -> Genome:
        state = _host(state)
        if not len(state.genomes):
            return jnp.asarray(state.start)
        best = np.argsort(state.fitness[:, 0], kind="stable")[:NEIGHBOURS]
        rows, fitness = jnp.asarray(state.genomes[best]), jnp.asarray(state.fitness[best, 0])
        return parts.likely_best(rows, fitness, jnp.isfinite(fitness), near=min(4, len(best)))

    return Strategy(
        name, population, _initial(space, 1), ask, tell, recommend,
        traceable=False, searches=frozenset(PLAIN), operators=("initial", "distribution", "distribution"),
    )  # fmt: skip


def nsga2(space: Space, population: int = 32, **hyperparameters: Any) -> Strategy:
    """NSGA-II: a population spread along the trade-off of `objectives` (2); every kind of column.

    Hyperparameters: `objectives` 2, `crossover_prob` 0.9, `mutation_prob` None (1 / numbers), `eta` 5.0
    of the polynomial mutation and simulated binary crossover (categorical columns are drawn anew). The
    recommendation is the survivor nearest to the ideal point, objectives scaled by their range on the
    first front. Scores of different generations are compared as they are.
    """
    name = "nsga2"
    given = parts.hyperparameters(name, CATALOGUE[name].defaults, hyperparameters)
    population = parts.check_population(name, population, CATALOGUE[name].minimum)
    parts.require(name, space, frozenset(PLAIN))
    objectives = given.pop("objectives")
    if isinstance(objectives, bool) or not isinstance(objectives, int) or not 1 <= objectives <= 16:
        raise ConfigError(f"{name}: expected objectives as a whole number in 1 .. 16, got {objectives!r}")
    parts.check_range(name, crossover_prob=(given["crossover_prob"], 0.0, 1.0), eta=(given["eta"], 0.0, 1e3))
    if given["mutation_prob"] is not None:
        parts.check_range(name, mutation_prob=(given["mutation_prob"], 0.0, 1.0))
    columns = _Columns(space)

    def make(seed: int) -> Any:
        with _quiet() as optuna:
            nsgaii = optuna.samplers.nsgaii
            sampler = optuna.samplers.NSGAIISampler(
                population_size=population, crossover_prob=given["crossover_prob"],
                mutation_prob=given["mutation_prob"], crossover=nsgaii.SBXCrossover(eta=given["eta"]),
                mutation=nsgaii.PolynomialMutation(eta=given["eta"]), seed=seed,
            )  # fmt: skip
            return optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)

    def ask(key: Any, state: State) -> tuple[Genomes, Parents, State]:
        state = _host(state)
        # The survivors stand as generation 0 of a fresh study: selection among P of P keeps them all, and
        # what they went through before is already in who survived.
        study = make(_seed(key))
        study.add_trials(_rows(columns, state.genomes, state.fitness))
        genomes = jnp.asarray(_ask_all(study, columns, state, population))
        return genomes, _shared(state.ids[: parts.POOL], population, parts.POOL), _next(state)

    def tell(key: Any, state: State, genomes: Genomes, scores: Scores) -> State:
        del key
        state = _host(state)
        fitness, any_ok = _settle(scores)
        if not any_ok:
            return state
        if fitness.shape[1] != objectives:
            raise ConfigError(
                f"{name}: expected {objectives} objectives, got {fitness.shape[1]}."
                f" Use nsga2(space, objectives={fitness.shape[1]})"
            )
        rows = np.concatenate([state.genomes, np.asarray(genomes, np.float32)])
        scored = np.concatenate([state.fitness, fitness])
        ids = np.concatenate([state.ids, _ids(state, population)])
        study = make(0)  # selection draws no random number
        study.add_trials(_rows(columns, rows, scored))
        kept = [trial.number for trial in study.sampler.select_parent(study, 1)]
        return state._replace(genomes=rows[kept], fitness=scored[kept], ids=ids[kept])

    def recommend(state: State) -> Genome:
        state = _host(state)
        if not len(state.genomes):
            return jnp.asarray(state.start)
        values = state.fitness.astype(np.float64)
        beaten = np.array([np.any(np.all(values <= v, axis=1) & np.any(values < v, axis=1)) for v in values])
        front = np.flatnonzero(~beaten)
        low, high = values[front].min(axis=0), values[front].max(axis=0)
        gaps = (values[front] - low) / np.where(high > low, high - low, 1.0)
        return jnp.asarray(state.genomes[front[np.argmin(np.sum(gaps**2, axis=1))]])

    return Strategy(
        name, population, _initial(space, objectives), ask, tell, recommend,
        traceable=False, searches=frozenset(PLAIN), operators=("initial", "pool", "pool"), objectives=objectives,
    )  # fmt: skip


# --- what both share ---------------------------------------------------------------------------------


def _optuna() -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Optuna without its notes that the options used here are experimental."""
    optuna = _optuna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield optuna


class _Columns:
    """Columns as Optuna distributions, one per genome number."""

    def __init__(self, space: Space) -> None:
        self.space = space
        sizes = [c.size for c in space.columns]
        self.bins = np.repeat([c.bins if c.kind in ("integer", "categorical") else 0 for c in space.columns], sizes)
        self.kinds = np.repeat([c.kind for c in space.columns], sizes)
        self._made: dict[str, Any] | None = None

    @property
    def distributions(self) -> dict[str, Any]:
        """Made at first use: importing optuna takes a second."""
        if self._made is None:
            d = _optuna().distributions
            kinds = {
                "real": lambda bins: d.FloatDistribution(0.0, 1.0),
                "log": lambda bins: d.FloatDistribution(0.0, 1.0),
                "weights": lambda bins: d.FloatDistribution(-WEIGHT_BOUND, WEIGHT_BOUND),
                "integer": lambda bins: d.IntDistribution(0, bins - 1),
                "categorical": lambda bins: d.CategoricalDistribution(tuple(range(bins))),
            }
            # Zero-padded: Optuna sorts parameters by name.
            self._made = {
                f"x{i:06d}": kinds[str(kind)](int(bins))
                for i, (kind, bins) in enumerate(zip(self.kinds, self.bins, strict=True))
            }
        return self._made

    def params(self, genome: np.ndarray) -> dict[str, Any]:
        """A told genome as Optuna parameters."""
        wide = np.asarray(genome, np.float64)
        index = np.clip(np.floor(wide * self.bins), 0, np.maximum(self.bins - 1, 0)).astype(int)
        held = np.where(self.kinds == "weights", np.clip(wide, -WEIGHT_BOUND, WEIGHT_BOUND), wide)
        values = [int(i) if b else float(x) for i, b, x in zip(index, self.bins, held, strict=True)]
        return dict(zip(self.distributions, values, strict=True))

    def genome(self, params: dict[str, Any]) -> np.ndarray:
        """Optuna parameters as a genome; bins at their middle."""
        values = np.array([float(params[name]) for name in self.distributions])
        return np.where(self.bins > 0, (values + 0.5) / np.maximum(self.bins, 1), values).astype(np.float32)

    def trial(self, genome: np.ndarray, fitness: np.ndarray, generation: int | None = None) -> Any:
        """A finished trial."""
        attributes = {} if generation is None else {_optuna().samplers.NSGAIISampler._get_generation_key(): generation}
        return _optuna().trial.create_trial(
            params=self.params(genome), distributions=self.distributions, values=[float(f) for f in fitness],
            system_attrs=attributes,
        )  # fmt: skip


def _rows(columns: _Columns, genomes: np.ndarray, fitness: np.ndarray) -> list[Any]:
    return [columns.trial(g, f, generation=0) for g, f in zip(genomes, fitness, strict=True)]


def _ask_all(study: Any, columns: _Columns, state: State, population: int) -> np.ndarray:
    asked = [columns.genome(study.ask(columns.distributions).params) for _ in range(population)]
    genomes = np.asarray(columns.space.project(np.stack(asked)))
    if int(state.generation) == 0:
        genomes = np.concatenate([np.asarray(state.start)[None], genomes[1:]])
    return genomes


def _initial(space: Space, objectives: int) -> Any:
    def init(key: Any, prior: Prior | None = None) -> State:
        del key
        return State(
            np.array(0, np.int32), np.asarray(parts.start_of(space, prior)), np.zeros((0, space.dimension), np.float32),
            np.zeros((0, objectives), np.float32), np.zeros((0, 2), np.int32),
        )  # fmt: skip

    return init


def _host(state: State) -> State:
    """The state as NumPy: walking through the rows of a JAX array costs a dispatch each."""
    return State(*(np.asarray(part) for part in state))


def _seed(key: Any) -> int:
    return int(jax.random.bits(key, (), np.uint32))


def _next(state: State) -> State:
    return state._replace(generation=np.array(int(state.generation) + 1, np.int32))


def _settle(scores: Scores) -> tuple[np.ndarray, bool]:
    """`[P, M]` fitness with failed rows at the worst finite value of each objective; is any row finite?"""
    raw = np.asarray(scores.fitness, np.float32)
    ok = np.isfinite(raw).all(axis=1) & (np.asarray(scores.failure) == int(Failure.OK))
    if not ok.any():
        return raw, False
    cut = np.clip(raw, -parts.HUGE, parts.HUGE)
    return np.where(ok[:, None], cut, cut[ok].max(axis=0)).astype(np.float32), True


def _ids(state: State, population: int) -> np.ndarray:
    born = np.full(population, int(state.generation) - 1)
    return np.stack([born, np.arange(population)], axis=1).astype(np.int32)


def _shared(ids: np.ndarray, population: int, slots: int) -> Parents:
    padded = np.full((slots, 2), -1, np.int32)
    padded[: len(ids)] = ids
    return jnp.broadcast_to(jnp.asarray(padded)[None], (population, slots, 2))
