"""A model does the same, whatever its network predicts: samples, bits per dimension, cost of training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits_config, mixture_config, settings

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.diffusion.process import alpha_sigma, broadcast_left
from cfgjax.evaluation.held_out_bits import held_out_bits
from cfgjax.models.model import Model
from cfgjax.nets import NETS
from cfgjax.runs.changes import check_resumable
from cfgjax.runs.diffusion_settings import without_later_keys
from cfgjax.training.run import Program, check_init_from

OTHERS = ["x", "v", "flow", "edm", "edm(data_std=0.5)"]
SHAPE = (4, 4, 1)
OPTIONS = {"guidance": 1.5, "sampler": "ddim(eta=0.5)", "num_steps": 8, "seed": 1}
LABELS = [0, 3, 9]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)


class Tanh(nn.Module):
    """x̂ = tanh z moved by the label, as a network that is trained to predict something else would state it."""

    out_channels: int
    num_classes: int
    target: str = "eps"

    @nn.compact
    def __call__(self, z, time, label, *, train=False):
        alpha, sigma = (broadcast_left(a, z) for a in alpha_sigma(-2 * jnp.log(jnp.tan(jnp.pi / 2 * time / 1000))))
        noise, std = sigma / alpha, 0.5 if self.target == "edm(data_std=0.5)" else 1.0
        if self.target.startswith("edm"):
            y = z * jnp.sqrt(noise**2 + std**2)  # given is c_in y
            z = alpha * y
        x = 0.8 * jnp.tanh(z) + 0.02 * broadcast_left(label, z)
        eps = (z - alpha * x) / sigma
        if self.target.startswith("edm"):
            skip, out = std**2 / (noise**2 + std**2), noise * std / jnp.sqrt(noise**2 + std**2)
            return (x - skip * y) / out
        return {"eps": eps, "x": x, "v": alpha * eps - sigma * x, "flow": eps - x}[self.target]


def model_of(parametrisation):
    config = digits_config(**{"data.image_shape": SHAPE, "diffusion.logsnr_min": -8.0, "diffusion.logsnr_max": 8.0})
    config.model = {"name": "tanh", "target": parametrisation}
    config.diffusion.parametrisation = parametrisation
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETS, "tanh", Tanh)
        return Model(config, {}, mesh=cfgjax.distributed.sharding.make_mesh(devices=jax.devices()[:1]))


def results(model):
    """(samples, bits per dimension of each level) of a model."""
    bits = held_out_bits(model, IMAGES, np.array(LABELS), num_steps=8, v=0.3)
    return model.sample_float(LABELS, **OPTIONS), bits["terms"]


@pytest.fixture(scope="module")
def expected():
    return results(model_of("eps"))


@pytest.mark.parametrize(
    "parametrisation", [pytest.param(name, marks=[] if "0.5" in name else pytest.mark.slow) for name in OTHERS]
)
def test_the_same_function_has_the_same_samples_and_bits(parametrisation, expected):
    for ours, theirs in zip(results(model_of(parametrisation)), expected, strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def step_flops(**diffusion):
    """FLOPs of a training step, as it is lowered."""
    keys = {f"diffusion.{name}": value for name, value in diffusion.items()}
    program = Program(mixture_config(**{"model.width": 128, "mesh.data": 1, **keys}), jax.devices()[:1])
    lowered = program.dispatch.lower(program.like, program.abstract_batches(1), program.step_key)
    return lowered.cost_analysis()["flops"]


@pytest.fixture(scope="module")
def flops():
    return step_flops()


@pytest.mark.parametrize(
    "diffusion",
    [
        {"parametrisation": "v"},
        {"parametrisation": "edm(data_std=0.5)", "weighting": "edm(data_std=0.5)", "schedule": "normal"},
        pytest.param({"parametrisation": "x", "weighting": "min_snr"}, marks=pytest.mark.slow),
        pytest.param({"parametrisation": "flow", "weighting": "v", "schedule": "logit_normal"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_training_step_costs_what_that_of_eps_costs(diffusion, flops):
    assert step_flops(**diffusion) == pytest.approx(flops, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parametrisation", "weighting"),
    [
        ("eps", "x"),
        ("x", "eps"),
        ("v", "sigmoid(b=2)"),
        ("flow", "min_snr"),
        ("edm(data_std=0.5)", "edm(data_std=0.5)"),
    ],
)
def test_networks_train_and_sample(parametrisation, weighting, tmp_path):
    config = mixture_config(**{"diffusion.schedule": "normal(mean=0.8, std=2)", "train.num_steps": 10})
    config.update({"sample": {"every_steps": 10}})
    config.diffusion.update({"parametrisation": parametrisation, "weighting": weighting})
    config.diffusion.time_sampler = "second_moment" if weighting == "min_snr" else "uniform"
    assert np.isfinite(cfgjax.train(config, tmp_path / "run").metrics["loss"])
    assert np.isfinite(cfgjax.load(tmp_path / "run").sample([0, 1, 2], 1.0, num_steps=4)).all()


@pytest.mark.parametrize(
    ("diffusion", "said"),
    [
        (
            {"parametrisation": "v", "learned_variance": True},
            "parametrisation is 'v'.*learned_variance True.*need 'eps'",
        ),
        ({"weighting": "min_snr(gamma=5)", "learned_variance": True}, "weighting is 'min_snr'.*learned_variance True"),
        ({"schedule": "normal(mean=40)"}, "has only .* of its mass between logsnr_min -20 and logsnr_max 20"),
        ({"weighting": "min_snr(gamma=-1)"}, "min_snr: gamma is -1"),
    ],
)
def test_contradictory_keys_are_reported_on_one_line(diffusion, said):
    with pytest.raises(UsageError, match=rf"\A[^\n]*{said}[^\n]*\Z"):
        settings(digits_config(**{f"diffusion.{name}": value for name, value in diffusion.items()}))


def test_equal_processes_have_equal_descriptions():
    described = lambda text: settings(mixture_config(**{"diffusion.schedule": text})).diffusion.described
    assert described("cosine") == "cosine λ in [-20, 20]"
    assert described("normal(std=2.4)") == described("normal") == "normal λ in [-20, 20]"


def test_parameters_of_another_parametrisation_mean_another_network():
    as_edm = lambda text: settings(mixture_config(**{"diffusion.parametrisation": text}))
    check_init_from("there", as_edm("edm"), as_edm("edm(data_std=1.0)"))
    with pytest.raises(UsageError, match=r"diffusion\.parametrisation is v there, edm\(data_std=0\.5\) here"):
        check_init_from("there", as_edm("edm(data_std=0.5)"), as_edm("v"))


def test_a_run_that_began_without_these_keys_resumes_and_its_samples_keep_their_identity():
    now = mixture_config()
    before = now.to_dict()
    for key in ("parametrisation", "weighting"):
        del before["diffusion"][key]
    check_resumable(settings(before), settings(now))
    assert without_later_keys(now.diffusion.to_dict()) == before["diffusion"]
    with pytest.raises(UsageError, match=r"diffusion\.weighting is 'v', the run has"):
        check_resumable(settings(before), settings(mixture_config(**{"diffusion.weighting": "v"})))
