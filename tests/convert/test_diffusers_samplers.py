"""Pictures are those that diffusers' schedulers draw with the same network, noise and timesteps.

The golden file is from diffusers 0.42.1: 10 steps of each scheduler with linear betas, with the defaults besides those
named at SAMPLERS, and with clip_sample=False for "none".
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits_config
from weight_files import GOLDENS, load

from cfgjax.convert import diffusers
from cfgjax.diffusion.levels import Discrete
from cfgjax.diffusion.prediction import PARAMETRISATIONS
from cfgjax.diffusion.samplers import ddim, dpmpp_2m, dpmpp_2m_sde, driver, heun, sample, unipc
from cfgjax.models.model import Model

CONFIG = {
    "data.source": "npz",
    "data.image_shape": (16, 16, 3),
    "data.num_classes": 10,
    "diffusion.betas": "linear",
    "diffusion.num_timesteps": 1000,
    **dict.fromkeys(("diffusion.schedule", "diffusion.logsnr_min", "diffusion.logsnr_max")),
}
LEVELS = Discrete("linear", 1000)
SAMPLERS = {
    "ddim": ddim(),  # DDIMScheduler; "consistent" with use_clipped_model_output=True
    "dpmpp_2m": dpmpp_2m(),  # DPMSolverMultistepScheduler; "consistent" with thresholding at 1
    "dpmpp_2m_sde": dpmpp_2m_sde(),  # the same with algorithm_type="sde-dpmsolver++"
    "heun": heun(),  # HeunDiscreteScheduler
    "unipc": unipc(),  # UniPCMultistepScheduler
}
with np.load(GOLDENS / "diffusers_samplers.npz") as file:
    GOLDEN = dict(file)
CASES = [name.removeprefix("timesteps/") for name in GOLDEN if name.startswith("timesteps/")]


def closed_form(z, logsnr, cond=None):
    """A denoiser whose ε̂ = tanh(z) (½ + t/2000)."""
    return PARAMETRISATIONS["eps"](jnp.tanh(z) * (0.5 + LEVELS.time(logsnr)[:, None, None, None] / 2000), z, logsnr)


def converted_network():
    """The denoiser of a converted UNet2DModel with random weights."""
    config, state_dict, _ = load(GOLDENS / "diffusers_unet_conv.npz")
    net, params = diffusers.unet(config, state_dict)
    label = jnp.zeros(2, int)  # of a network without classes

    def denoise(z, logsnr):
        return PARAMETRISATIONS["eps"](net.apply({"params": params}, z, LEVELS.time(logsnr), label), z, logsnr)

    return denoise


def check_same_pictures(name, denoise, model, monkeypatch, atol=1e-4):
    sampler, clip = name.split()
    images = lambda array: jnp.asarray(array.transpose(0, 2, 3, 1))
    noise = images(GOLDEN["noise"].reshape(-1, 3, 16, 16)).reshape(-1, 2, 16, 16, 3)
    monkeypatch.setattr(driver, "noise_at", lambda keys, step, shape, dtype: noise[step - 1])
    logsnrs = LEVELS.table[GOLDEN[f"timesteps/{name}"].astype(int)]
    keys = jax.random.split(jax.random.key(0), 2)
    run = functools.partial(sample, SAMPLERS[sampler], denoise, keys, logsnrs=logsnrs, clip=clip)
    with jax.default_matmul_precision("highest"):
        x = jax.jit(lambda z: run(z=z))(images(GOLDEN["z"]))
    expected = images(GOLDEN[f"{model}/{name}"])
    np.testing.assert_allclose(x, expected, atol=atol, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.endswith("none")) for name in CASES]
)
def test_samples_are_those_of_diffusers_schedulers(name, monkeypatch):
    check_same_pictures(name, closed_form, "closed", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim x_only", "ddim consistent", "unipc consistent"])
def test_samples_of_a_converted_network_are_those_of_diffusers(name, monkeypatch):
    # random weights amplify rounding errors, which ε̃ that is not clipped passes on
    check_same_pictures(name, converted_network(), "network", monkeypatch, atol=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("clip", ["x_only", "none"])
def test_a_model_draws_the_samples_of_diffusers_from_their_noise(clip):
    model = Model(digits_config(**CONFIG), {}, bind_params=lambda params: closed_form)
    images = lambda name: GOLDEN[name].transpose(0, 2, 3, 1)
    options = {"sampler": "ddim()", "num_steps": "ddim10", "grid": "schedule()", "clip": clip}
    with jax.default_matmul_precision("highest"):
        x = model.sample_float([0, 1], z=images("z"), **options)
        from_seed = model.sample_float([0, 1], **options)
    np.testing.assert_allclose(x, images(f"closed/ddim {clip}"), atol=1e-4, rtol=1e-4)
    assert np.abs(x - from_seed).max() > 0.1
