"""The vocabularies that the built-in tasks use; plain data. A task may bring its own."""

from __future__ import annotations

from evometa.programs.vocabulary import Register, Vocabulary

_ELEMENTWISE = (
    "copy", "add", "sub", "mul", "div", "neg", "abs", "sign", "square", "sqrt", "exp", "log", "tanh", "max", "min",
    "clip", "lerp", "where",
)  # fmt: skip

OPTIMIZER = Vocabulary(
    "optimizer",
    inputs=(
        Register("w", text="weights before the step"),
        Register("g", text="gradient of the training loss by the weights"),
        Register("t", "scalar", "count", text="number of the step, from 1"),
        Register("progress", "scalar", "unit", text="t / number of steps"),
        Register("fan_in", "layer", "positive", setup=True, text="inputs of each unit of the layer"),
    ),
    memory=(
        *(Register(name) for name in ("m", "v", "x", "y", "z")),
        Register("l", "layer"),
        Register("s", "scalar"),
    ),
    outputs=(Register("step", text="what is added to the weights"),),
    operations=(*_ELEMENTWISE, "layer_mean", "layer_rms", "mean", "rms"),
    constants=6, setup=2, update=16,
)  # fmt: skip

PLASTICITY = Vocabulary(
    "plasticity",
    inputs=(
        Register("w", text="weight of the connection"),
        Register("pre", text="activity of the sending neuron"),
        Register("post", text="activity of the receiving neuron"),
        Register("back", text="what the receiving neurons together say of the sending one: sum over j of post_j w_ij"),
        Register("modulator", "scalar", text="a signal to all neurons, such as reward minus its running mean"),
        Register("fan_in", "scalar", "positive", setup=True, text="connections of each receiving neuron"),
    ),
    memory=(*(Register(name) for name in ("trace", "x", "y", "z")), Register("l", "layer")),
    outputs=(Register("change", text="what is added to the weight"),),
    operations=(*_ELEMENTWISE, "layer_mean", "layer_rms"),
    constants=6, setup=0, update=14,
)  # fmt: skip  # a layer here is one receiving neuron

LOSS = Vocabulary(
    "loss",
    inputs=(
        Register("q", text="value of the action taken; the loss is differentiated by it"),
        Register("q_max", text="largest value of any action in the same state"),
        Register("q_mean", text="mean value of the actions in the same state"),
        Register("next_max", text="largest value in the next state, by the target network"),
        Register("next_online", text="the target network's value of the action that the online network prefers next"),
        Register("next_mean", text="mean value of the actions in the next state, by the target network"),
        Register("reward", text="reward of the step"),
        Register("discount", "tensor", "unit", text="discount factor, zero where the episode ended"),
    ),
    memory=tuple(Register(name) for name in ("x", "y", "z")),
    outputs=(Register("loss", text="loss of one transition; averaged over a batch"),),
    operations=(
        "copy", "add", "sub", "mul", "div", "neg", "abs", "square", "sqrt", "exp", "log", "tanh", "max", "min",
    ),
    constants=3, setup=0, update=12, slope="q",
)  # fmt: skip  # no `lerp`: it hides products of `q`, and the source's language has none

POPULATION = Vocabulary(
    "population",
    inputs=(
        Register("x", text="where the individual is"),
        Register("own_best", text="the best place it has seen"),
        Register("best", text="the best place that any has seen"),
        Register("worst", text="the place of the worst individual"),
        Register("mean", text="mean place of the population"),
        *(Register(f"other{i}", text="place of another individual, drawn at random") for i in (1, 2, 3)),
        Register("uniform", "tensor", "unit", text="random numbers in 0 .. 1"),
        Register("normal", text="random numbers, standard normal"),
        Register("spread", text="standard deviation of the population in this coordinate", probe="positive"),
        Register("rank", "layer", "unit", text="0 for the best individual, 1 for the worst"),
        Register("progress", "scalar", "unit", text="share of the budget that is spent"),
    ),
    memory=(*(Register(name) for name in ("velocity", "y", "z")), Register("s", "scalar")),
    outputs=(Register("next", text="where it goes"),),
    operations=tuple(name for name in _ELEMENTWISE if name != "log"),
    constants=5, setup=0, update=12,
)  # fmt: skip  # a layer here is one individual

VOCABULARIES: dict[str, Vocabulary] = {v.name: v for v in (OPTIMIZER, PLASTICITY, LOSS, POPULATION)}
