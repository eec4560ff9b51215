"""Numbers of guided-diffusion: a discrete-time process, its reverse steps, guidance and losses on given inputs.

Six examples, each at its own t of the respaced process. The reference rounds the coefficients of its formulas to
float32, where everything else is float64.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion import likelihood
from cfgjax.diffusion.discrete import BETAS, kept_timesteps, respaced
from cfgjax.diffusion.guidance import classifier, conditional
from cfgjax.diffusion.levels import Discrete
from cfgjax.diffusion.losses import hybrid_loss
from cfgjax.diffusion.prediction import PARAMETRISATIONS, Prediction
from cfgjax.diffusion.process import (
    alpha_sigma,
    diffuse,
    eps_from_x,
    last_log_variances,
    posterior,
    reverse_log_variance,
)
from cfgjax.diffusion.samplers import ancestral, clipped, ddim, ddim_encode, ddim_step, noise_at, sample

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
INPUTS = {"config", "x0", "noise", "t", "model_output", "classifier_grad"}


@pytest.fixture(params=["cosine_1000", "linear_ddim25"])
def golden(request):
    """(the numbers in NHWC, the process, its spacing, `inputs`), in float64."""
    with np.load(GOLDENS / f"diffusion_{request.param}.npz") as file, jax.enable_x64(True):
        want = {name: np.moveaxis(file[name], 1, -1) if file[name].ndim == 4 else file[name] for name in file.files}
        config = json.loads(str(want["config"]))
        process, spacing = Discrete(config["schedule"], config["T"]), config["respacing"]
        spacing = spacing if isinstance(spacing, str) else spacing[0]
        yield want, process, spacing, inputs(want, process.grid(spacing)[::-1])


def inputs(want, grid):
    """The arrays of six examples that the formulas take; at the ends λ' is that of x itself, λ_{t+1} that of noise."""
    t = want["t"]
    names = {"x": "x0", "noise": "noise", "z": "xt", "out": "model_output", "grad": "classifier_grad"}
    levels = {
        "logsnr": grid[t],
        "logsnr_next": np.where(t == 0, np.inf, grid[t - 1]),
        "logsnr_after": np.append(grid, -80.0)[t + 1],
    }
    ends = {"first": t == 0, "ends": grid[[0, 1, -1]], "num_levels": float(len(grid))}
    return jax.tree.map(jnp.asarray, {k: want[name] for k, name in names.items()} | levels | ends)


def agree(golden, ours, *, slack=None):
    """Each example within 1e-6 of the field's largest number there, times slack[field], a number or one per example."""
    for name, found in ours.items():
        want = golden[0][name]
        axes = tuple(range(1, want.ndim))
        difference, scale = np.abs(found - want).max(axis=axes), np.abs(want).max(axis=axes)
        assert np.all(difference <= 1e-6 * (slack or {}).get(name, 1.0) * scale), (name, difference / scale)


def log_variances(g):
    """(lower, upper) at each t; at t = 0 those of the step from the last level to x itself."""
    first, (near, far, _) = g["first"].reshape(-1, 1, 1, 1), g["ends"]
    _, *inner = posterior(g["z"], g["x"], g["logsnr"], g["logsnr_next"])
    last = last_log_variances(g["z"], near, far)
    return [jnp.where(first, a, b) for a, b in zip(last, inner, strict=True)]


def predicted(g):
    """The prediction of the network."""
    return PARAMETRISATIONS["eps"](g["out"], g["z"], g["logsnr"])


def guided_by(g, model, form="eps"):
    """The denoiser of a model with the given gradient as that of a classifier."""
    guide = jax.tree_util.Partial(lambda z, logsnr, cond: jnp.sum(z * g["grad"], axis=tuple(range(1, z.ndim))))
    return classifier(conditional(), 1.0, form, guide)(lambda z, logsnr, cond: model(z, logsnr), None, None, 0.0)


@jax.jit
def process_fields(g):
    mean, log_var, _ = posterior(g["z"], g["x"], g["logsnr"], g["logsnr_next"])
    like = jnp.zeros_like(mean)
    return {
        "xt": diffuse(g["x"], g["noise"], g["logsnr"]),
        "posterior_mean": mean,
        "posterior_variance": like + jnp.exp(log_var),
        "posterior_log_variance_clipped": like + log_variances(g)[0],
    }


@jax.jit
def reverse_fields(g):
    levels = g["logsnr"], g["logsnr_next"]
    wide, _, variance = predicted(g)
    log_var = reverse_log_variance(variance, *log_variances(g))
    x, eps, _ = clipped(predicted(g), g["logsnr"])
    mean, mean_wide = (posterior(g["z"], x, *levels)[0] for x in (x, wide))
    # clipped before guidance and not after it, as the reference has it; the samplers clip after guidance
    guided, _, _ = guided_by(g, lambda *_: Prediction(x, eps))(g["z"], levels[0], ())[0]
    shift = guided_by(g, lambda *_: Prediction(x, eps), "z").shift(g["z"], mean, *levels)
    return {
        "p_variance": jnp.exp(log_var),
        "p_log_variance": log_var,
        "pred_xstart": x,
        "pred_xstart_unclipped": wide,
        "p_mean": mean,
        "p_mean_unclipped": mean_wide,
        "classifier_guided_mean": mean + jnp.exp(log_var) * shift,
        "classifier_guided_pred_xstart": guided,
        "classifier_guided_ddim_mean": posterior(g["z"], guided, *levels)[0],
        "ddim_sample": ddim_step(x, eps, *levels),
        "ddim_reverse_sample": ddim_step(x, eps, g["logsnr"], g["logsnr_after"]),
    }


def loss_fields(g):
    first, (near, far, noise) = g["first"], g["ends"]
    given = lambda *_: predicted(g), g["x"], None, g["noise"], g["logsnr"]
    neighbour = jnp.where(first, far, g["logsnr_next"])
    found = hybrid_loss(*given, neighbour, first, bound_steps=g["num_levels"])
    prediction = predicted(g)
    terms = g["x"], prediction.x, prediction.variance
    decoder = likelihood.decoder_bits(*terms, near, far, clip=True)
    finite = jnp.where(first, 30.0, g["logsnr_next"])
    return {
        "loss_mse": found["mse"],
        "loss_vb": 0.001 * found["bound"],
        "loss": found["loss"],
        "vb_bits_per_dim": jnp.where(
            first, decoder, likelihood.transition_bits(*terms, g["logsnr"], finite, clip=True)
        ),
        "prior_bits_per_dim": likelihood.prior_bits(g["x"], noise),
    }


def test_the_levels_equal_those_of_guided_diffusion(golden):
    want, process, spacing, g = golden
    kept = kept_timesteps(process.num_timesteps, spacing)
    np.testing.assert_array_equal(kept, want["timestep_map"])
    betas = BETAS[process.betas](process.num_timesteps)
    np.testing.assert_allclose(respaced(betas, kept), want["betas"], rtol=1e-12)
    np.testing.assert_allclose(alpha_sigma(process.grid(spacing)[::-1])[0] ** 2, want["alphas_cumprod"], rtol=1e-12)
    for network_t in (process.time(g["logsnr"].astype(jnp.float32)), kept[want["t"]]):
        np.testing.assert_array_equal(network_t, want["network_t"])


LEVELS = {"timestep_map", "betas", "alphas_cumprod", "network_t"}


def test_every_other_field_is_compared(golden):
    groups = process_fields, reverse_fields, jax.jit(lambda g: loss_fields(g))
    compared = set().union(*(jax.eval_shape(fields, golden[3]) for fields in groups))
    assert compared == set(golden[0]) - INPUTS - LEVELS


def test_the_process_equals_that_of_guided_diffusion(golden):
    agree(golden, process_fields(golden[3]))


def test_a_reverse_step_equals_that_of_guided_diffusion(golden):
    agree(golden, reverse_fields(golden[3]), slack=magnified(golden))


def magnified(golden):
    """What a coefficient rounded to float32 is worth: 1/α in x̃, and 1/σ in an ε that is made from x̃."""
    alpha, sigma = map(np.asarray, alpha_sigma(golden[3]["logsnr"]))
    by_x = dict.fromkeys(("pred_xstart", "pred_xstart_unclipped", "classifier_guided_pred_xstart"), 1 / alpha)
    return by_x | dict.fromkeys(("ddim_sample", "ddim_reverse_sample"), 1 / sigma)


def test_the_losses_equal_those_of_guided_diffusion(golden, monkeypatch):
    # with its approximate normal distribution function; (1 + tanh u)/2 = sigmoid(2u)
    log_sigmoid, scale = jax.nn.log_sigmoid, np.sqrt(8 / np.pi)
    monkeypatch.setattr(likelihood, "log_ndtr", lambda u: log_sigmoid(scale * (u + 0.044715 * u**3)))
    # rounded to float32 are a log-variance of −10 in a term of 0.1, and a variance of 1 − 1e-5 in a prior of 1e-5
    slack = {"loss_vb": 3, "loss": 3, "vb_bits_per_dim": 3, "prior_bits_per_dim": 300}
    agree(golden, jax.jit(lambda g: loss_fields(g))(golden[3]), slack=slack)


@jax.jit
@jax.vmap
def steps(key, g):
    """({name: z' of a sampler's step from λ to λ'}, the noise it drew) of each example."""
    z, logsnrs = g["z"][None], jnp.stack([g["logsnr"], g["logsnr_next"]])

    def denoise(z, logsnr):
        # at the second level x̃ is z/10, which the sampler then returns
        known = Prediction(0.1 * z, eps_from_x(z, 0.1 * z, logsnr), jnp.zeros_like(z))
        network = PARAMETRISATIONS["eps"](g["out"][None], z, logsnr)
        return jax.tree.map(lambda a, b: jnp.where(logsnr[0] == g["logsnr"], a, b), network, known)

    run = lambda sampler, denoise: sample(sampler, denoise, key[None], z, logsnrs, clip=True)
    found = {
        "p_mean": run(ancestral(), denoise),
        "classifier_guided_mean": run(ancestral(), guided_by(g, denoise, "z")),
        "ddim_sample": run(ddim(), denoise),
    }
    return {name: 10 * x[0] for name, x in found.items()}, noise_at(key[None], 1, z.shape[1:], z.dtype)[0]


def test_the_samplers_take_the_steps_of_guided_diffusion(golden):
    want, *_, g = golden
    inner = want["t"] > 0  # at t = 0 there is no λ'
    examples = {name: g[name][inner] for name in ("z", "out", "grad", "logsnr", "logsnr_next")}
    found, noise = steps(jax.random.split(jax.random.key(0), inner.sum()), examples)
    deviation = np.exp(want["p_log_variance"][inner] / 2)
    for name in ("p_mean", "classifier_guided_mean"):
        np.testing.assert_allclose(found[name], want[name][inner] + deviation * noise, atol=1e-6)
    slack = np.reshape(magnified(golden)["ddim_sample"][inner], (-1, 1, 1, 1))
    assert np.all(np.abs(found["ddim_sample"] - want["ddim_sample"][inner]) < 1e-6 * slack)


@jax.jit
def last_steps(g):
    """[x̃ of each sampler on the grid of λ_0 alone], for every z."""
    keys = jax.random.split(jax.random.key(0), len(g["z"]))
    denoise = lambda z, logsnr: PARAMETRISATIONS["eps"](g["out"], z, logsnr)
    return [sample(sampler, denoise, keys, g["z"], g["ends"][:1], clip=True) for sampler in (ancestral(), ddim())]


def test_the_last_step_equals_that_of_guided_diffusion(golden):
    want, *_, g = golden
    first = want["t"] == 0
    for found, name in zip(last_steps(g), ("p_mean", "ddim_sample"), strict=True):
        np.testing.assert_allclose(found[first], want[name][first], atol=1e-6)


@jax.jit
@jax.vmap
def encode(z, logsnr, logsnr_after, out):
    denoise = lambda z, logsnr: PARAMETRISATIONS["eps"](out[None], z, logsnr)
    return ddim_encode(denoise, z[None], jnp.stack([logsnr_after, logsnr]), clip=True)[0]


def test_encoding_steps_equal_ddim_reverse_steps_of_guided_diffusion(golden):
    g = golden[3]
    found = encode(g["z"], g["logsnr"], g["logsnr_after"], g["out"])
    agree(golden, {"ddim_reverse_sample": found}, slack=magnified(golden))
