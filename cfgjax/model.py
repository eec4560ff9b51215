"""A trained model: `load(workdir).sample(labels, guidance=…)`, with no training code in sight."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from cfgjax.data.batches import to_uint8
from cfgjax.data.sources import check_labels
from cfgjax.diffusion.guidance import classifier_free, scale_to_weight
from cfgjax.diffusion.samplers import SAMPLERS, initial_noise
from cfgjax.diffusion.schedules import logsnr_grid
from cfgjax.errors import UsageError, choose
from cfgjax.network import bind, make_network
from cfgjax.sharding import batch_sharding, make_mesh, place_batch, replicated
from cfgjax.training.checkpoint import restore_params
from cfgjax.workdir import read_config

NOISE_OPTIONS = ("v", "eta")  # how much noise a sampler adds; which one it takes is in its signature


def load(workdir, step=None, ema=None):
    """The `Model` of a run's newest whole checkpoint, or of `step`.

    ema: a rate of config.ema.rates; by default the first; 0 for the parameters without averaging.
    Raises UsageError where there is no such run, step or rate.
    """
    config = read_config(workdir)
    rate = config.ema.rates[0] if ema is None and config.ema.rates else ema
    params, step = restore_params(f"{workdir}/checkpoints", str(float(rate)) if rate else None, step)
    return Model(config, params, step=step)


class Model:
    """A network with its parameters, and the samplers compiled for it.

    params: as the network has them. mesh: whose devices share each batch, with params in place on it; by default all
    devices. bind_params: params → eps_fn, where the ε-predictor is another than the config's network.
    .config, .num_classes, .image_shape, .step (of the checkpoint) are as trained.
    """

    def __init__(self, config, params, *, step=None, mesh=None, bind_params=None):
        self.config, self.step = config, step
        self.num_classes, self.image_shape = config.data.num_classes, tuple(config.data.image_shape)
        self.is_image = len(self.image_shape) == 3
        self._bind = bind_params or functools.partial(bind, make_network(config))
        self._mesh = make_mesh() if mesh is None else mesh
        self.params = jax.device_put(params, replicated(self._mesh)) if mesh is None else params
        self._eps = jax.jit(lambda params, *inputs: self._bind(params)(*inputs))
        self._sample = jax.jit(self._run, static_argnames=("sampler",))

    def eps(self, z, logsnr, label):
        """ε_θ(z, label) at λ = logsnr. z: [B, …]; logsnr, label: a scalar or [B]; label num_classes is "none"."""
        z = jnp.asarray(z, jnp.float32)
        logsnr = jnp.broadcast_to(jnp.asarray(logsnr, jnp.float32), z.shape[:1])
        label = np.broadcast_to(np.asarray(label), z.shape[:1])
        check_labels(label, self.num_classes + 1)
        return self._eps(self.params, z, logsnr, jnp.asarray(label, jnp.int32))

    def sample(self, labels, guidance=None, **options):
        """Guided samples, sample i for labels[i]: uint8 [N, H, W, C]; float32 [N, D] for data that are not images.

        labels: [N] ints in [0, num_classes). guidance: w, a number or one per label; 0, the default, is the
        conditional model, −1 the unconditional one. options: as `sample_float` has them.
        """
        x = self.sample_float(labels, guidance, **options)
        return to_uint8(x) if self.is_image else x

    def sample_float(
        self,
        labels,
        guidance=None,
        *,
        scale=None,
        num_steps=None,
        sampler=None,
        seed=0,
        v=None,
        eta=None,
        batch_size=None,
    ):
        """x̃ of guided samples before rounding, float32 [N, …], images in [−1, 1].

        scale: s = 1 + w in place of guidance. num_steps: network calls T. sampler: "ancestral", which takes v, or
        "ddim", which takes eta. What is not given is as in config.sample. seed, i: all that the noise of sample i
        depends on. batch_size: samples per call of the compiled sampler; by default all, at most 256.

        Compiles once per (batch size, num_steps, sampler). Raises UsageError for labels, weights or options that do
        not fit.
        """
        labels = np.atleast_1d(np.asarray(labels))
        check_labels(labels, self.num_classes)
        weights = guidance_weights(guidance, scale, len(labels))
        sampler = self.config.sample.sampler if sampler is None else sampler
        num_steps = self.config.sample.num_steps if num_steps is None else num_steps
        for name, value, least in (("num_steps", num_steps, 2), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value is not None and (not isinstance(value, (int, np.integer)) or not least <= value < 2**32):
                raise UsageError(f"{name} is {value!r}; need an integer of at least {least}, below 2³²")
        noise = self._noise_option(sampler, v=v, eta=eta)
        diffusion = self.config.diffusion
        grid = logsnr_grid(num_steps, diffusion.schedule, diffusion.logsnr_min, diffusion.logsnr_max).astype(np.float32)

        size = min(batch_size or 256, len(labels))
        size += -size % self._mesh.size
        parts = []
        for start in range(0, len(labels), size):
            index = np.arange(start, start + size) % len(labels)  # past the end: computed and thrown away
            batch = (index.astype(np.int32), labels[index].astype(np.int32), weights[index])
            batch = place_batch(self._mesh, batch)
            parts.append(self._sample(self.params, jax.random.key(seed), *batch, grid, noise, sampler=sampler))
        return np.concatenate([np.asarray(part) for part in parts])[: len(labels)]

    def _noise_option(self, sampler, **given):
        """{option: value} for the sampler's own noise option, given or from the config."""
        takes = inspect.signature(choose("sampler", sampler, SAMPLERS)).parameters
        for name, value in given.items():
            if value is not None and name not in takes:
                raise UsageError(f"sampler {sampler} takes no {name}")
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; need a value in [0, 1]")
        pick = lambda name: self.config.sample[name] if given[name] is None else given[name]
        return {name: np.float32(pick(name)) for name in NOISE_OPTIONS if name in takes}

    def _run(self, params, key, index, labels, weights, logsnrs, noise, *, sampler):
        """x̃ [B, …] for a batch of global indices, labels and weights, each [B]."""
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(index)
        z = jax.lax.with_sharding_constraint(initial_noise(keys, self.image_shape), batch_sharding(self._mesh))
        denoise = classifier_free(self._bind(params), labels, weights, self.num_classes)
        return SAMPLERS[sampler](keys, denoise, z, logsnrs, clip=self.is_image, **noise)


def guidance_weights(guidance, scale, length):
    """w as float32 [length], from w or from s = 1 + w, a number or one per label; 0 where neither is given."""
    if guidance is not None and scale is not None:
        raise UsageError(f"guidance (w) {guidance} and scale (s = 1 + w) {scale} are both given; give one")
    try:
        given = np.asarray(0.0 if guidance is None else guidance, np.float32)
        weight = given if scale is None else scale_to_weight(np.asarray(scale, np.float32))
    except (TypeError, ValueError):
        raise UsageError(f"guidance {guidance}, scale {scale}: need a number or one per label") from None
    if weight.ndim and weight.shape != (length,):
        raise UsageError(f"guidance has shape {weight.shape} for {length} labels; give a number or one per label")
    if not np.isfinite(weight).all():
        raise UsageError(f"guidance {weight} is not finite")
    return np.broadcast_to(weight, (length,)).astype(np.float32)
