"""Known update rules as listings: where a search may start, and what it is compared with.

Step sizes are constants of the rules, so that what a rule gives can be used as it is; a task may scale it further.
"""

from __future__ import annotations

from functools import lru_cache

from evometa.errors import NotFound, did_you_mean
from evometa.programs.code import Program
from evometa.programs.listing import parse
from evometa.programs.vocabulary import Vocabulary

# Adam and its relatives keep the average of ones beside the average of gradients: s = lerp(s, 1, 0.1) from zero is
# 1 - 0.9^t, the bias correction; the share of one average is one constant for both.
_OPTIMIZER = {
    # Robbins and Monro 1951.
    "sgd": """
step = mul(g, -0.01)
""",
    # Heavy ball: Polyak 1964.
    "momentum": """
m = mul(m, 0.9)
m = add(m, g)
step = mul(m, -0.01)
""",
    # Nesterov 1983, as Sutskever et al. 2013 write it.
    "nesterov": """
m = mul(m, 0.9)
m = add(m, g)
x = mul(m, 0.9)
x = add(g, x)
step = mul(x, -0.01)
""",
    # Sign descent: Riedmiller and Braun 1993; Bernstein et al. 2018.
    "sign_sgd": """
x = sign(g)
step = mul(x, -0.001)
""",
    # Duchi, Hazan and Singer 2011.
    "adagrad": """
x = square(g)
v = add(v, x)
x = sqrt(v)
x = add(x, 1e-07)
step = div(g, x)
step = mul(step, -0.01)
""",
    # Tieleman and Hinton 2012.
    "rmsprop": """
x = square(g)
v = lerp(v, x, 0.1)
x = sqrt(v)
x = add(x, 1e-08)
step = div(g, x)
step = mul(step, -0.001)
""",
    # Kingma and Ba 2015, with bias correction.
    "adam": """
m = lerp(m, g, 0.1)
x = square(g)
v = lerp(v, x, 0.001)
s = lerp(s, 1.0, 0.1)
l = lerp(l, 1.0, 0.001)
x = div(m, s)
y = div(v, l)
y = sqrt(y)
y = add(y, 1e-08)
step = div(x, y)
step = mul(step, -0.001)
""",
    # Loshchilov and Hutter 2019: Adam with decoupled weight decay.
    "adamw": """
m = lerp(m, g, 0.1)
x = square(g)
v = lerp(v, x, 0.001)
s = lerp(s, 1.0, 0.1)
l = lerp(l, 1.0, 0.001)
x = div(m, s)
y = div(v, l)
y = sqrt(y)
y = add(y, 1e-08)
x = div(x, y)
y = mul(w, 0.0001)
x = add(x, y)
step = mul(x, -0.001)
""",
    # Chen et al. 2023: found by a search over programs.
    "lion": """
x = lerp(m, g, 0.1)
x = sign(x)
y = mul(w, 0.001)
x = add(x, y)
step = mul(x, -0.0001)
m = lerp(m, g, 0.01)
""",
    # Layer-wise trust ratio: You, Gitman and Ginsburg 2017, without its weight decay.
    "lars": """
x = layer_rms(w)
y = layer_rms(g)
y = add(y, 1e-08)
x = div(x, y)
x = mul(g, x)
m = mul(m, 0.9)
m = add(m, x)
step = mul(m, -0.001)
""",
}

_PLASTICITY = {
    # Hebb 1949: what fires together wires together; grows without bound.
    "hebb": """
x = mul(pre, post)
change = mul(x, 0.01)
""",
    # Hebb with decay of the weight: the simplest rule that stays bounded where activities are.
    "hebb_decay": """
x = mul(pre, post)
x = sub(x, w)
change = mul(x, 0.01)
""",
    # Oja 1982: one neuron finds the first principal component.
    "oja": """
x = mul(post, w)
x = sub(pre, x)
x = mul(post, x)
change = mul(x, 0.01)
""",
    # Oja's subspace rule (Oja and Karhunen 1985; Oja 1989): several neurons span the principal components.
    "subspace": """
x = sub(pre, back)
x = mul(post, x)
change = mul(x, 0.01)
""",
    # Bienenstock, Cooper and Munro 1982, with the sliding threshold of Intrator and Cooper 1992.
    "bcm": """
x = square(post)
y = sub(post, z)
z = lerp(z, x, 0.02)
x = mul(pre, post)
x = mul(x, y)
change = mul(x, 0.01)
""",
    # Three-factor rule: Hebb gated by a signal to all neurons (Fremaux and Gerstner 2016).
    "hebb_modulated": """
x = mul(pre, post)
x = mul(x, modulator)
change = mul(x, 0.01)
""",
    # The same with an eligibility trace, so that a late signal finds what earned it (Izhikevich 2007).
    "eligibility": """
x = mul(pre, post)
trace = lerp(trace, x, 0.2)
x = mul(trace, modulator)
change = mul(x, 0.01)
""",
}

_LOSS = {
    # Squared temporal-difference error of Q-learning: Watkins 1989; Mnih et al. 2015.
    "td": """
x = mul(discount, next_max)
x = add(reward, x)
x = sub(x, q)
loss = square(x)
""",
    # Double Q-learning: van Hasselt, Guez and Silver 2016.
    "double_td": """
x = mul(discount, next_online)
x = add(reward, x)
x = sub(x, q)
loss = square(x)
""",
    # Expected Sarsa under the uniform policy: van Seijen et al. 2009.
    "expected_td": """
x = mul(discount, next_mean)
x = add(reward, x)
x = sub(x, q)
loss = square(x)
""",
    # Huber's loss of the same error, linear beyond 1: Huber 1964; Mnih et al. 2015.
    "huber_td": """
x = mul(discount, next_max)
x = add(reward, x)
x = sub(x, q)
x = abs(x)
y = min(x, 1.0)
z = mul(y, 0.5)
z = sub(x, z)
loss = mul(y, z)
""",
    # DQNReg, found by a search over loss graphs: Co-Reyes et al. 2021.
    "dqn_reg": """
x = mul(discount, next_max)
x = add(reward, x)
x = sub(x, q)
x = square(x)
y = mul(q, 0.1)
loss = add(x, y)
""",
    # DQNClipped of the same paper: max(q, d^2 + y) + max(q - y, discount * next_max^2) with the target y.
    "dqn_clipped": """
x = mul(discount, next_max)
x = add(reward, x)
y = sub(x, q)
y = square(y)
y = add(y, x)
y = max(q, y)
x = sub(q, x)
z = square(next_max)
z = mul(z, discount)
x = max(x, z)
loss = add(x, y)
""",
}

# Selection belongs to the task: DE and the Gaussian rule move away from the best place that an individual has seen,
# which is where greedy selection would have left it.
_POPULATION = {
    # DE/rand/1/bin: Storn and Price 1997; no coordinate is forced to change.
    "de": """
y = sub(other2, other3)
y = mul(y, 0.5)
y = add(other1, y)
z = sub(0.9, uniform)
next = where(z, y, own_best)
""",
    # DE/current-to-best/1/bin: Price, Storn and Lampinen 2005.
    "de_best": """
y = sub(best, own_best)
z = sub(other1, other2)
y = add(y, z)
y = mul(y, 0.5)
y = add(own_best, y)
z = sub(0.9, uniform)
next = where(z, y, own_best)
""",
    # Global-best particle swarm with inertia: Kennedy and Eberhart 1995; Shi and Eberhart 1998; numbers of Clerc and
    # Kennedy 2002. There is one random number a coordinate: own and global best share it, u and 1 - u.
    "pso": """
y = lerp(best, own_best, uniform)
y = sub(y, x)
y = mul(y, 1.49618)
velocity = mul(velocity, 0.7298)
velocity = add(velocity, y)
next = add(x, velocity)
""",
    # Bare-bones particle swarm: Kennedy 2003.
    "bare_bones": """
y = lerp(own_best, best, 0.5)
z = sub(own_best, best)
z = abs(z)
z = mul(z, normal)
next = add(y, z)
""",
    # Gaussian mutation of the own best, a (1+1) evolution strategy each: Rechenberg 1973; Schwefel 1981.
    "gaussian": """
y = mul(normal, 0.1)
next = add(own_best, y)
""",
    # The same, with steps as wide as the population is spread.
    "gaussian_spread": """
y = mul(normal, spread)
y = mul(y, 0.5)
next = add(own_best, y)
""",
    # Univariate Gaussian estimation of distribution: Larranaga and Lozano 2001; here of the whole population.
    "eda": """
y = mul(normal, spread)
next = add(mean, y)
""",
    # Uniform crossover with another individual, and mutation: Syswerda 1989.
    "genetic": """
y = sub(0.5, uniform)
y = where(y, other1, own_best)
z = mul(normal, 0.05)
next = add(y, z)
""",
}

KNOWN: dict[str, dict[str, str]] = {
    vocabulary: {name: rule.strip() for name, rule in rules.items()}
    for vocabulary, rules in (
        ("optimizer", _OPTIMIZER), ("plasticity", _PLASTICITY), ("loss", _LOSS), ("population", _POPULATION),
    )
}  # fmt: skip


@lru_cache(maxsize=256)
def known(vocabulary: Vocabulary, name: str) -> Program:
    """The known rule `name` of a vocabulary.

    Raises `NotFound` where there is none of that name, `ConfigError` where the vocabulary, though it is called like a
    built-in one, lacks what the rule needs.
    """
    rules = KNOWN.get(vocabulary.name, {})
    if name not in rules:
        have = f"Known: {', '.join(rules)}" if rules else f"Known rules are there for {', '.join(KNOWN)}"
        raise NotFound(f"vocabulary {vocabulary.name!r} has no known rule {name!r}.{did_you_mean(name, rules)} {have}.")
    return parse(vocabulary, rules[name])
