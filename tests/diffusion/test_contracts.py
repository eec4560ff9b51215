"""Laws of the errors about rules and samplers that return something else than the contract says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import mixture_config, of_mixture, settings

from cfgjax.base.errors import UsageError
from cfgjax.data.sources.registry import mixture_of
from cfgjax.diffusion.guidance import Denoiser, bind_rule, classifier, rules_without_null
from cfgjax.diffusion.losses import eps_loss
from cfgjax.diffusion.prediction import Parametrisation, Prediction
from cfgjax.diffusion.samplers import ddim, initial_noise, sample
from cfgjax.diffusion.schedules import SCHEDULES
from cfgjax.diffusion.specs import tree
from cfgjax.models.binding import rule_value
from cfgjax.models.model import Model
from cfgjax.models.network import bind, init_params, make_network

CONFIG = mixture_config()
MODEL = Model(CONFIG, {}, bind_params=of_mixture(mixture_of(settings(CONFIG).data)))
NEEDED = "need Prediction(x=float32[8,2], eps=float32[8,2])"


@tree
@dataclasses.dataclass(frozen=True)
class returning:
    """A rule whose denoiser returns change(prediction of the condition). strength: a number, traced in a program."""

    strength: float
    change: object = dataclasses.field(metadata={"static": True})

    def __call__(self, predict, cond, null, w):
        return lambda z, logsnr: self.change(predict(z, logsnr, cond))

    def __repr__(self):
        return f"returning({self.strength})"


@tree
@dataclasses.dataclass(frozen=True)
class remembering:
    """A rule with a memory that is `before` at first and change(memory) after each level."""

    before: object = dataclasses.field(metadata={"static": True})
    change: object = dataclasses.field(metadata={"static": True})

    def __call__(self, predict, cond, null, w):
        return Denoiser(
            lambda z, logsnr, memory: (predict(z, logsnr, cond), self.change(memory)), lambda z: self.before(z)
        )

    def __repr__(self):
        return "remembering()"


def draw(rule=None, sampler="ddim()"):
    return MODEL.sample_float([0, 1] * 4, 0.5, rule=rule, sampler=sampler, num_steps=3)


def message(**options):
    """The one line of the error that sampling with these options ends in."""
    with pytest.raises(UsageError) as e:
        draw(**options)
    assert "\n" not in str(e.value)
    return str(e.value)


WRONG_PREDICTIONS = {
    "float32[8,2]": lambda p: p.x,
    "(float32[8,2], float32[8,2])": lambda p: (p.x, p.eps),
    "Prediction(x=float32[8], eps=float32[8,2])": lambda p: Prediction(p.x[:, 0], p.eps),
    "Prediction(x=float32[8,2], eps=float32[])": lambda p: Prediction(p.x, jnp.mean(p.eps)),
    "Prediction(x=float16[8,2], eps=float32[8,2])": lambda p: Prediction(p.x.astype(jnp.float16), p.eps),
    "Prediction(x=float32[8,2], eps=int32[8,2])": lambda p: Prediction(p.x, p.eps.astype(jnp.int32)),
    "Prediction(x=float32[8,2])": lambda p: Prediction(p.x, None),
    "Prediction(x=float32[8,2], eps=float32[8,2], variance=float32[8])": lambda p: p._replace(variance=p.x[:, 0]),
    "{'x': float32[8,2]}": lambda p: {"x": p.x},
    "None": lambda p: None,
}


@pytest.mark.parametrize(("returned", "change"), WRONG_PREDICTIONS.items(), ids=list(WRONG_PREDICTIONS))
def test_a_rule_whose_prediction_has_another_shape_is_named_with_both_shapes(returned, change):
    assert message(rule=returning(0.25, change)) == f"rule returning(0.25) returns {returned}; {NEEDED}"


def test_a_rule_inside_another_one_is_found():
    guide = jax.tree_util.Partial(lambda z, logsnr, cond: jnp.sum(z, axis=1))
    rule = classifier(returning(0.25, lambda p: p.x), guide=guide)
    assert message(rule=rule) == f"rule {rule!r} returns float32[8,2]; {NEEDED}"


@tree
@dataclasses.dataclass(frozen=True)
class no_denoiser:
    """A rule that returns a prediction at once."""

    def __call__(self, predict, cond, null, w):
        return Prediction(w, w)


def test_a_rule_that_does_not_return_a_denoiser_is_named():
    said = (
        "rule no_denoiser() returns Prediction(x=float32[8], eps=float32[8]); need a denoiser (z, logsnr) → Prediction"
    )
    assert message(rule=no_denoiser()) == said


WRONG_MEMORIES = {
    "float32[8] to float32[4]": (lambda z: z[:, 0], lambda memory: memory[:4]),
    "float32[8] to int32[8]": (lambda z: z[:, 0], lambda memory: memory.astype(jnp.int32)),
    "float32[8] to (float32[8], float32[8])": (lambda z: z[:, 0], lambda memory: (memory, memory)),
    "{'n': float32[]} to {'m': float32[]}": (lambda z: {"n": jnp.float32(0)}, lambda memory: {"m": memory["n"]}),
    "() to None": (lambda z: (), lambda memory: None),
}


@pytest.mark.parametrize(("changes", "memory"), WRONG_MEMORIES.items(), ids=list(WRONG_MEMORIES))
def test_a_memory_that_changes_its_structure_is_an_error_that_names_the_rule(changes, memory):
    said = message(rule=remembering(*memory))
    assert said.startswith(f"rule remembering() changes its memory from {changes}; need the same structure")


def test_a_memory_or_state_that_is_not_a_tree_of_arrays_is_named():
    rule = remembering(lambda z: {"name": "a", "z": z}, lambda memory: memory)
    said = "rule remembering() starts with the memory {'name': 'a', 'z': float32[8,2]}; need a tree of arrays"
    assert message(rule=rule) == said
    assert message(sampler=lettered()) == "sampler lettered() starts with the state 'a'; need a tree of arrays"


def test_a_denoiser_with_memory_that_returns_a_prediction_alone_is_named():
    denoise = Denoiser(lambda z, logsnr, memory: Prediction(z, z), jnp.zeros_like)
    rule = jax.tree_util.Partial(lambda *args: denoise)
    with pytest.raises(UsageError, match=r"has a memory and returns Prediction\(.*; need \(Prediction, memory\)"):
        bind_rule(rule, len, None, None, 0.0)(jnp.zeros((3, 2)), 0.0, jnp.zeros((3, 2)))


def test_a_memory_may_be_a_number():
    counting = remembering(lambda z: 0, lambda n: n + 1)
    averaging = remembering(lambda z: 0, lambda n: n + jnp.float32(0.5))
    for rule in (counting, averaging):
        np.testing.assert_array_equal(draw(rule=rule), draw(rule="conditional()"))


@tree
@dataclasses.dataclass(frozen=True)
class stepping:
    """A sampler whose step returns change(z, state)."""

    strength: float
    change: object = dataclasses.field(metadata={"static": True})
    draws_noise = False

    def init(self, z):
        return jnp.zeros(len(z))

    def evaluations(self, num_steps):
        return num_steps

    def step(self, denoise, z, state, level, noise):
        denoise(z, level.logsnr)
        return self.change(z, state)

    def __repr__(self):
        return f"stepping({self.strength})"


WRONG_STEPS = {
    "returns float32[8,2] from its step; need (z, state)": lambda z, state: z,
    "changes its z from float32[8,2] to float32[8]": lambda z, state: (z[:, 0], state),
    "changes its z from float32[8,2] to bfloat16[8,2]": lambda z, state: (z.astype(jnp.bfloat16), state),
    "changes its state from float32[8] to ()": lambda z, state: (z, ()),
    "changes its state from float32[8] to float32[8,1]": lambda z, state: (z, state[:, None]),
}


@pytest.mark.parametrize(("problem", "change"), WRONG_STEPS.items(), ids=list(WRONG_STEPS))
def test_a_step_that_returns_something_else_is_an_error_that_names_the_sampler(problem, change):
    assert message(sampler=stepping(0.25, change)).startswith(f"sampler stepping(0.25) {problem}")


class blind(stepping):
    """A sampler that never evaluates its denoiser."""

    def step(self, denoise, z, state, level, noise):
        return z, state


@tree
@dataclasses.dataclass(frozen=True)
class lettered:
    """A sampler whose state is a letter."""

    def init(self, z):
        return "a"

    def step(self, denoise, z, state, level, noise):
        return z, state


@dataclasses.dataclass(frozen=True)
class without_init:
    """A sampler with a step alone."""

    def step(self, denoise, z, state, level, noise):
        return z, state


def test_a_sampler_without_init_is_named():
    assert message(sampler=without_init()) == "sampler without_init() has no method init; need init(z) and step(…)"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_steps": "ddim25"}, "num_steps is 'ddim25'; a process in continuous λ takes a number of steps"),
        ({"sampler": "ancestral()"}, "needs a network with a learned variance"),
    ],
)
def test_a_sampler_for_another_process_is_reported_on_one_line(options, said):
    with pytest.raises(UsageError) as e:
        MODEL.sample([0, 1], 0.5, **options)
    assert said in str(e.value) and "\n" not in str(e.value)


def test_a_sampler_that_never_calls_its_denoiser_is_named():
    assert message(sampler=blind(0.25, None)) == (
        "sampler stepping(0.25) never calls denoise in its step; need at least one call"
    )


def test_the_denoiser_is_also_checked_outside_of_a_model():
    keys = jax.random.split(jax.random.key(0), 4)
    z = initial_noise(keys, (2,))
    with pytest.raises(UsageError, match=r"denoiser <function .* returns float32\[4,2\]; need Prediction"):
        sample(ddim(), lambda z, logsnr: z, keys, z, np.linspace(-4, 4, 3))


@pytest.mark.parametrize("pair", [lambda *args: args[0], lambda output, z, logsnr: (output, z, z)])
def test_a_parametrisation_that_does_not_return_a_pair_is_named(pair):
    z = jnp.zeros((2, 3))
    with pytest.raises(UsageError, match=r"Parametrisation\(pair=.* from its pair; need a tuple \(x̂, ε̂\)"):
        Parametrisation(pair)(z, z, jnp.zeros(2))


def test_a_parametrisation_whose_pair_has_another_shape_is_named():
    parametrisation = Parametrisation(lambda output, z, logsnr: (output[:, :1], output))
    config = mixture_config()
    net = make_network(settings(config))
    predict = bind(net, init_params(net, jax.random.key(0), (2,)), MODEL.levels, parametrisation)
    said = r"parametrisation Parametrisation\(.*returns Prediction\(x=float32\[4,1\].*need Prediction\(x=float32\[4,2\]"
    with pytest.raises(UsageError, match=said):
        predict(jnp.zeros((4, 2)), jnp.zeros(4), {"label": jnp.zeros(4, jnp.int32)})


def test_a_weighting_of_another_shape_is_named():
    x, logsnr = jnp.ones((4, 2)), jnp.zeros(4)
    predict = lambda z, logsnr, cond: Prediction(z, z)
    loss = lambda weighting: eps_loss(predict, x, None, x, logsnr, weighting)
    with pytest.raises(UsageError, match=r"weighting .* of shape \[4, 1\] for λ of shape \[4\]"):
        loss(lambda logsnr: jnp.ones((len(logsnr), 1)))
    np.testing.assert_array_equal(loss(lambda logsnr: 2.0), 2 * loss(jnp.ones_like))


def test_a_schedule_that_does_not_decrease_is_named(monkeypatch):
    monkeypatch.setitem(SCHEDULES, "upwards", lambda u, low, high, *, xp=jnp: low + u * (high - low))
    model = Model(mixture_config(**{"diffusion.schedule": "upwards"}), {}, bind_params=MODEL.bind)
    with pytest.raises(UsageError, match="schedule 'upwards' does not decrease from logsnr_max"):
        model.grid(4)


def test_the_listed_rules_without_null_label_are_valid():
    assert rules_without_null()
    for text in rules_without_null():
        assert not rule_value(text).uses_null
