"""Every algorithm of evosax 0.3.2: how it is called here with which defaults, or why it is left out.

Plain data, no imports of libraries. All methods search the library's own unit coordinates
`y = (genome - center) / sigma` (see `evosax_adapter.py`), so every default below is a number for a
distribution of standard deviation 1, as the library's own defaults are. A default that differs from
the library's was measured against random search on the exam's task at equal evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """One row: which algorithm, and what it needs to work in our coordinates."""

    algorithm: str  # key in evosax.algorithms
    family: str  # "distribution" (its mean is recommended) or "population" (hides its parents)
    summary: str
    source: str
    sigma: float = 0.2  # genome units per library unit
    defaults: Mapping[str, Any] = field(default_factory=dict)  # hyperparameters, by their names in evosax
    optimizer: str = ""  # which gradient step takes `learning_rate`: sgd, adam or clipup
    ranked: bool = True  # told ranks (ties broken at random) instead of the fitness itself
    sort: bool = False  # told best first
    minimum: int = 4
    even: bool = False
    traceable: bool = True


def _distribution(algorithm: str, summary: str, source: str, **fields: Any) -> Method:
    return Method(algorithm, "distribution", summary, source, **fields)


def _population(algorithm: str, summary: str, source: str, **fields: Any) -> Method:
    # These keep the fitness of survivors and compare it with that of later generations, as their papers
    # do, so they are told the fitness itself: ranks of different generations mean nothing together.
    return Method(algorithm, "population", summary, source, **{"ranked": False, **fields})


METHODS: dict[str, Method] = {
    # --- covariance and natural-gradient methods ---
    "cma_es": _distribution(
        "CMA_ES", "Covariance matrix adaptation; the default for up to a few hundred numbers.",
        "Hansen 2016, arXiv 1604.00772",
        # The library sets its rates by population and dimension; the factors multiply them.
        defaults={
            "std_min": 1e-5, "std_max": 1e3, "factor_c_mean": 1.0, "factor_c_std": 1.0, "factor_d_std": 1.0,
            "factor_c_c": 1.0, "factor_c_1": 1.0, "factor_c_mu": 1.0,
        },
    ),
    "sep_cma_es": _distribution(
        "Sep_CMA_ES", "CMA-ES with a diagonal covariance: linear cost, for thousands of numbers.", "Ros & Hansen 2008",
        defaults={"std_min": 1e-5, "std_max": 1e3},
    ),
    "ma_es": _distribution(
        "MA_ES", "CMA-ES without the covariance matrix: adapts its root.", "Beyer & Sendhoff 2017",
        # evosax 0.3.2 pairs the sorted weights with `z` as it was drawn; told best first, they match.
        defaults={"std_min": 1e-5, "std_max": 1e3}, sort=True,
    ),
    "rm_es": _distribution(
        "Rm_ES", "Rank-m evolution strategy: a few evolution paths instead of a covariance.", "Li & Zhang 2017",
        defaults={"std_min": 1e-3, "std_max": 1e3, "c_std": 0.02},
    ),
    "cr_fm_nes": _distribution(
        "CR_FM_NES", "Cost-reduced fast-moving natural evolution strategy, linear cost.",
        "Nomura & Ono 2022, arXiv 2201.11422",
        even=True,
    ),
    "snes": _distribution(
        "SNES", "Separable natural evolution strategy.", "Wierstra et al. 2014, JMLR 15",
        optimizer="sgd", defaults={"learning_rate": 1.0},
    ),
    "xnes": _distribution(
        "xNES", "Exponential natural evolution strategy.", "Wierstra et al. 2014, JMLR 15",
        optimizer="sgd", defaults={"learning_rate": 1.0},
    ),
    "iamalgam": _distribution(
        "iAMaLGaM_Full", "Incremental Gaussian model with anticipated mean shift, full covariance.",
        "Bosman et al. 2013",
        defaults={"std": 0.01}, ranked=False,
    ),
    "iamalgam_univariate": _distribution(
        "iAMaLGaM_Univariate", "The same with a diagonal covariance.", "Bosman et al. 2013",
        defaults={"std": 0.01}, ranked=False,
    ),
    # --- gradient-like strategies ---
    "open_es": _distribution(
        "Open_ES", "OpenAI's evolution strategy: mirrored samples, centered ranks, Adam.",
        "Salimans et al. 2017, arXiv 1703.03864",
        optimizer="adam", defaults={"learning_rate": 0.2, "std": 1.0, "decay": 0.99}, even=True,
    ),
    "pgpe": _distribution(
        "PGPE", "Policy gradients with parameter-based exploration, ClipUp steps.",
        "Sehnke et al. 2010; Toklu et al. 2020",
        optimizer="clipup",
        defaults={"learning_rate": 0.2, "max_velocity": 0.4, "std_lr": 0.1, "std_max_change": 0.2}, even=True,
    ),
    "ars": _distribution(
        "ARS", "Augmented random search: the better half of mirrored directions.",
        "Mania et al. 2018, arXiv 1803.07055",
        optimizer="adam", defaults={"learning_rate": 0.2, "std": 1.0, "decay": 0.99}, even=True,
    ),
    "asebo": _distribution(
        "ASEBO", "Adaptive active subspaces of past gradients.", "Choromanski et al. 2019, arXiv 1903.04268",
        optimizer="adam", defaults={"learning_rate": 0.2, "std": 1.0, "decay": 0.99, "subspace_dims": 1}, even=True,
    ),
    "guided_es": _distribution(
        "GuidedES", "Guided evolution strategy; without surrogate gradients, mirrored sampling.",
        "Maheswaranathan et al. 2018, arXiv 1806.10230",
        optimizer="adam",
        defaults={"learning_rate": 0.2, "std": 1.0, "decay": 0.99, "alpha": 0.5, "beta": 1.0}, even=True,
    ),
    "esmc": _distribution(
        "ESMC", "Evolution strategy with meta-loss clipping.", "Merchant et al. 2021, arXiv 2107.09661",
        optimizer="adam", defaults={"learning_rate": 0.2, "std": 1.0, "decay": 0.99}, even=True,
    ),
    "persistent_es": _distribution(
        "PersistentES", "Persistent evolution strategy; with T = K it is mirrored ES.",
        "Vicol et al. 2021, arXiv 2112.13835",
        optimizer="adam", defaults={"learning_rate": 0.2, "std": 1.0, "decay": 0.99, "T": 1, "K": 1}, even=True,
    ),
    "noise_reuse_es": _distribution(
        "NoiseReuseES", "Noise-reuse evolution strategy; with T = K it is mirrored ES.",
        "Li et al. 2023, arXiv 2304.12180",
        optimizer="adam", defaults={"learning_rate": 0.2, "std": 1.0, "decay": 0.99, "T": 1, "K": 1}, even=True,
    ),
    "simple_es": _distribution(
        "SimpleES", "Gaussian strategy: mean and spread of the better half.", "Rechenberg 1973",
        optimizer="sgd", defaults={"learning_rate": 1.0, "c_std": 0.1},
    ),
    # --- learned strategies, with the weights bundled in evosax ---
    "des": _distribution(
        "DES", "Discovered evolution strategy.", "Lange et al. 2023, arXiv 2211.11260",
        optimizer="sgd", defaults={"learning_rate": 1.0, "lr_std": 0.1},
    ),
    "les": _distribution(
        "LES", "Learned evolution strategy (attention over ranks), bundled weights.",
        "Lange et al. 2023, arXiv 2211.11260",
        traceable=False,  # two devices and one differ in the last bit
    ),
    "cma_anchored_les": _distribution(
        "CMAAnchoredLES", "Separable CMA-ES with bounded learned residuals, bundled weights.", "evosax 0.3",
        ranked=False,
    ),
    "evotf_es": _distribution(
        "EvoTF_ES", "Evolution transformer, bundled weights.", "Lange et al. 2024, arXiv 2403.02985",
        traceable=False,  # two devices and one differ in the last bit
    ),
    # --- local search ---
    "hill_climbing": _distribution(
        "HillClimbing", "Gaussian steps around the best so far.", "folklore",
        defaults={"std": 1.0, "decay": 0.97}, ranked=False, minimum=1,
    ),
    "gradientless_descent": _distribution(
        "GradientlessDescent", "Steps of many radii around the best so far.", "Golovin et al. 2019, arXiv 1911.06317",
        defaults={"radius_min": 0.005, "radius_max": 1.0, "radius_decay": 5.0}, ranked=False, minimum=1,
        traceable=False,  # compiled apart and compiled together differ in the last bit
    ),
    "simulated_annealing": _distribution(
        "SimulatedAnnealing", "Metropolis acceptance of the generation's best.", "Rere et al. 2015",
        defaults={"std": 1.0, "decay": 0.97, "temperature_init": 1.0, "temperature_limit": 0.1,
                  "temperature_decay": 0.999, "boltzmann_constant": 5.0},
        ranked=False, minimum=1,
    ),
    # --- populations ---
    "differential_evolution": _population(
        "DifferentialEvolution", "DE/best/1/bin (elitism=False: DE/rand/1/bin).", "Storn & Price 1997",
        defaults={"elitism": False, "crossover_rate": 0.9, "differential_weight_min": 0.5,
                  "differential_weight_max": 0.8, "num_diff": 1},
    ),
    "pso": _population(
        "PSO", "Particle swarm.", "Kennedy & Eberhart 1995",
        defaults={"inertia_coeff": 0.7, "cognitive_coeff": 1.5, "social_coeff": 1.5},
    ),
    "simple_ga": _population(
        "SimpleGA", "Truncation selection, uniform crossover, Gaussian mutation.", "Such et al. 2017, arXiv 1712.06567",
        defaults={"crossover_rate": 0.2, "std": 1.0, "decay": 0.97},
    ),
    "mr15_ga": _population(
        "MR15_GA", "Genetic search, mutation rate by the one-fifth rule.", "Rechenberg 1987",
        defaults={"std_init": 1.0, "std_min": 1e-4, "std_max": 10.0, "std_ratio": 0.2},
    ),
    "samr_ga": _population(
        "SAMR_GA", "Genetic search with self-adapted mutation rates.", "Clune et al. 2008",
        defaults={"std_init": 1.0, "std_min": 1e-4, "std_max": 10.0, "std_meta": 2.0},
    ),
    "gesmr_ga": _population(
        "GESMR_GA", "Group elite selection of mutation rates.", "Kumar et al. 2022, arXiv 2204.04817",
        defaults={"std_init": 1.0, "std_min": 1e-4, "std_max": 10.0, "std_meta": 2.0, "num_groups": 0},
    ),
    "lga": _population(
        "LGA", "Learned genetic algorithm, bundled weights.", "Lange et al. 2023, arXiv 2304.03995",
        defaults={"std_init": 1.0},
    ),
}  # fmt: skip

LEFT_OUT: dict[str, str] = {
    "DiffusionEvolution": "its noise schedule needs the number of generations beforehand (a run here can always be"
    " extended), and it did not clearly beat random search at equal evaluations",
    "LM_MA_ES": "NaN wherever the population exceeds twice the number of dimensions (its path rate is their ratio,"
    " under a square root; evosax issue 55), and its update pairs sorted weights with unsorted samples",
    "RandomSearch": "random_search is our own, so that it samples weights and bins as the space says",
    "SV_CMA_ES": "several populations at once under another signature (num_populations)",
    "SV_Open_ES": "several populations at once under another signature (num_populations)",
}
