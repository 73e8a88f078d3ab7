"""Digits under shift: what training sees, equal shapes, and that shifts are where they should be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evometa.errors import ConfigError
from evometa.tasks import digits as module
from evometa.tasks.digits import digits

TINY = {"steps": 20, "hidden": 8, "support": 128, "query": 64}


@pytest.fixture(scope="module")
def tiny():
    return digits(**TINY)


def test_construction_loads_nothing(monkeypatch):
    """SYS-2: test domains are functions until somebody opens them."""
    monkeypatch.setattr(module, "_images", lambda *a: pytest.fail("loaded at construction"))
    assert len(digits().domains) == 14


def test_parts_are_disjoint_and_only_away_is_shifted(monkeypatch):
    """S0-2: support and home are plain digits; no image is in two parts of a domain."""
    plain, labels = module._plain()
    marked = np.arange(len(labels))[:, None, None] / len(labels) * np.ones_like(plain)
    monkeypatch.setattr(module, "_plain", lambda: (marked, labels))
    monkeypatch.setitem(module.SHIFTS, "blur", lambda images, luck: images)
    parts = [
        set(module._images("blur", p, *where)["image"][:, 0].tolist())
        for p, where in {"support": (0, 512), "home": (512, 256), "away": (768, 256)}.items()
    ]
    assert [len(p) for p in parts] == [512, 256, 256]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_every_shift_moves_images_and_keeps_them_in_range(tiny):
    """Shapes are equal over domains, values lie in 0 .. 1, labels stay."""
    shapes = set()
    for domain in tiny.domains:
        data = (domain.support(), {q: f() for q, f in domain.queries.items()})
        shapes.add(str(jax.tree.map(lambda x: (x.shape, x.dtype), data)))
        away, again = data[1]["away"], domain.queries["away"]()
        assert away["image"].min() >= 0.0 and away["image"].max() <= 1.0
        np.testing.assert_array_equal(away["image"], again["image"])
        images, labels = module._plain()
        plain = {image.tobytes() for image in images.reshape(-1, 64).astype(np.float32)}
        moved = sum(image.tobytes() not in plain for image in away["image"])
        assert moved > 48, f"{domain.name}: only {moved} of 64 images differ from every plain one"
        assert set(away["label"]) == set(range(10))
    assert len(shapes) == 1
    assert set(tiny.split.train) | set(tiny.split.validation) | set(tiny.split.test) == {d.name for d in tiny.domains}


def test_training_learns_and_away_is_harder():
    """The baseline is a working recipe: few errors at home, more of them away."""
    task = digits()
    domain = task.domain("rotate15")
    learned = jax.jit(task.fit)(jax.random.key(0), task.baseline, jax.tree.map(jnp.asarray, domain.support()))
    scores = {q: task.judge(jax.random.key(1), learned, f()) for q, f in domain.queries.items()}
    assert float(scores["home"]["error"]) < 0.15
    assert float(scores["away"]["loss"]) > float(scores["home"]["loss"])


def test_every_column_matters(tiny):
    """A gene that nothing reads would drift."""
    base = tiny.space.encode(tiny.baseline)
    support = jax.tree.map(jnp.asarray, tiny.domain("noise").support())
    query = tiny.domain("noise").queries["home"]()

    @jax.jit
    @partial(jax.vmap, in_axes=0)
    def loss(genome):
        learned = tiny.fit(jax.random.key(0), tiny.space.decode(genome), support)
        return tiny.judge(jax.random.key(1), learned, query)["loss"]

    moved = np.where(np.eye(len(base)) > 0, (base + 0.37) % 1.0, base).astype(np.float32)
    losses = np.asarray(loss(jnp.concatenate([base[None], moved])))
    assert np.all(np.isfinite(losses)) and np.all(losses[1:] != losses[0])


def test_bad_options_say_what_was_expected():
    with pytest.raises(ConfigError, match="multiple of 8"):
        digits(batch=12)
    with pytest.raises(ConfigError, match="1797"):
        digits(support=1500)
