"""The NumPy task: deterministic, sealed until opened, and every kind of column used."""

import pickle

import numpy as np
import pytest

from evometa.errors import ConfigError
from evometa.tasks import tables as module
from evometa.tasks.tables import tables


@pytest.fixture(scope="module")
def tiny():
    return tables(steps=20, rows=80)


def both(task, name, candidate=None, key=1):
    domain = task.domain(name)
    learned = task.fit(key, candidate or task.baseline, domain.support())
    return {query: task.judge(key, learned, data()) for query, data in domain.queries.items()}


def test_construction_loads_nothing(monkeypatch):
    """SYS-2: test tables are functions until somebody opens them."""
    monkeypatch.setattr(module, "_table", lambda *a: pytest.fail("loaded at construction"))
    assert tables().runs == "python"


def test_the_same_key_gives_the_same_bits(tiny):
    """SYS-5: replaying a row reproduces its score; another key gives another one."""
    assert both(tiny, "moons") == both(tiny, "moons")
    assert both(tiny, "moons") != both(tiny, "moons", key=2)


@pytest.mark.parametrize("name", [*module.TRAIN, *module.VALIDATION])
def test_parts_are_disjoint_and_away_lies_further_out(tiny, name):
    """S0-2: no row is in two parts; `away` is where training saw little."""
    domain = tiny.domain(name)
    parts = {"support": domain.support(), **{q: f() for q, f in domain.queries.items()}}
    everything = np.concatenate([p["x"] for p in parts.values()])
    middle, spread = everything.mean(0), everything.std(0) + 1e-9
    far = {n: (((p["x"] - middle) / spread) ** 2).sum(1) for n, p in parts.items()}
    assert far["away"].min() >= max(far["support"].max(), far["home"].max()) - 1e-9
    assert len(everything) == 80 and len(parts["away"]["x"]) == 16
    assert set(parts["home"]["y"]) <= set(parts["support"]["y"]) | {parts["away"]["y"].max()}


@pytest.mark.parametrize("activation", ["tanh", "relu", "sine"])
@pytest.mark.parametrize("scaling", ["none", "standard", "rank"])
def test_every_choice_gives_a_finite_loss(tiny, activation, scaling):
    candidate = {**tiny.baseline, "activation": activation, "scaling": scaling, "hidden": 3, "rate": 0.01}
    scores = both(tiny, "iris", candidate)
    assert all(np.isfinite(list(metrics.values())).all() for metrics in scores.values())
    assert set(scores["away"]) == {"loss", "error", "support_loss", "inner_steps"}


def test_gradients_by_hand_are_the_gradients(tiny):
    """One step of SGD without momentum equals a numerical derivative of the loss."""
    x, y = np.random.default_rng(0).standard_normal((32, 2)), np.arange(32) % 2
    one = {**tiny.baseline, "momentum": 0.0, "decay": 0.0, "activation": "tanh", "scaling": "none", "hidden": 2}
    still = module.fit(3, {**one, "rate": 1e-12}, {"x": x, "y": y}, steps=1, batch=4000)
    moved = module.fit(3, {**one, "rate": 1e-3}, {"x": x, "y": y}, steps=1, batch=4000)
    step = (still["weights"][0] - moved["weights"][0]) / 1e-3
    numeric = np.zeros_like(step)
    rows = np.random.default_rng(3)
    rows.standard_normal((2, 2)), rows.standard_normal((2, 2))
    order = rows.integers(0, 32, (1, 4000))[0]
    for place in np.ndindex(step.shape):
        ends = []
        for delta in (1e-5, -1e-5):
            weights = [w.copy() for w in still["weights"]]
            weights[0][place] += delta
            ends.append(module._loss({**still, "weights": weights}, {"x": x[order], "y": y[order]})[0])
        numeric[place] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(step, numeric, atol=1e-6)


def test_divergence_is_a_number_not_a_warning(tiny):
    """A candidate that blows up is a failure for evometa to name; it must not print or raise."""
    scores = both(tiny, "digits_3_8", {**tiny.baseline, "scaling": "none", "rate": 1.0, "momentum": 0.98, "decay": 1.0})
    assert isinstance(scores["away"]["loss"], float)


def test_it_can_be_sent_to_another_process(tiny):
    """The processes backend pickles the task and what was learned."""
    again = pickle.loads(pickle.dumps(tiny))
    assert both(again, "iris") == both(tiny, "iris")


def test_bad_options_say_what_was_expected():
    with pytest.raises(ConfigError, match="rows >= 40"):
        tables(rows=10)
