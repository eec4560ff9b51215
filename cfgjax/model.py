"""A trained model: `load(workdir).sample(labels, guidance=…)`, with no training code in sight."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from cfgjax.data.batches import to_uint8
from cfgjax.data.sources import check_labels
from cfgjax.diffusion.guidance import classifier_free, conditional, scale_to_weight
from cfgjax.diffusion.samplers import SAMPLERS, initial_noise
from cfgjax.diffusion.schedules import logsnr_grid
from cfgjax.errors import UsageError, choose
from cfgjax.network import bind, is_classifier, make_network
from cfgjax.processes import gather_rows
from cfgjax.sharding import batch_sharding, make_mesh, place_global, replicated
from cfgjax.training.checkpoint import restore_params
from cfgjax.workdir import read_config

NOISE_OPTIONS = ("v", "eta")  # how much noise a sampler adds; which one it takes is in its signature


def load(workdir, step=None, ema=None):
    """The `Model` of a run's newest whole checkpoint, or of `step`.

    ema: a rate of config.ema.rates; by default the first; 0 for the parameters without averaging.
    Raises UsageError where there is no such run, step or rate.
    """
    config = read_config(workdir)
    if is_classifier(config):
        raise UsageError(f"{workdir} holds a classifier ({config.model.name}), which draws no samples")
    params, step = load_params(workdir, config, step, ema)
    return Model(config, params, step=step)


def load_params(workdir, config, step=None, ema=None):
    """(parameters, step) of a run as `load` chooses them, as numpy arrays."""
    rate = config.ema.rates[0] if ema is None and config.ema.rates else ema
    return restore_params(f"{workdir}/checkpoints", str(float(rate)) if rate else None, step)


class Model:
    """A network with its parameters, and the samplers compiled for it.

    params: as the network has them. mesh: whose devices share each batch, with params in place on it; by default all
    devices. bind_params: params → eps_fn, where the ε-predictor is another than the config's network.
    .config, .num_classes, .image_shape, .step (of the checkpoint) are as trained. .params may be replaced: what is
    compiled stays. .bind(params): the ε-predictor itself, for programs of one's own.
    """

    def __init__(self, config, params, *, step=None, mesh=None, bind_params=None):
        self.config, self.step = config, step
        self.num_classes, self.image_shape = config.data.num_classes, tuple(config.data.image_shape)
        self.is_image = len(self.image_shape) == 3
        self.bind = bind_params or functools.partial(bind, make_network(config))
        self.mesh = make_mesh() if mesh is None else mesh
        self.params = params
        if mesh is None:
            self.put(params)
        self._eps = jax.jit(lambda params, *inputs: self.bind(params)(*inputs))
        self._sample = jax.jit(self._run, static_argnames=("sampler", "guided"))

    def put(self, params):
        """Replaces the parameters by those given, whole on every device; what is compiled stays."""
        self.params = jax.device_put(params, replicated(self.mesh))

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
        guided=None,
    ):
        """x̃ of guided samples before rounding, float32 [N, …], images in [−1, 1].

        scale: s = 1 + w in place of guidance. batch_size: samples per call of the compiled sampler; by default all, at
        most 256. seed, i: all that the noise of sample i depends on. The other options are `sampler`'s; guided is by
        default whether a weight is not 0.

        Raises UsageError for labels, weights or options that do not fit.
        """
        labels = np.atleast_1d(np.asarray(labels))
        check_labels(labels, self.num_classes)
        weights = guidance_weights(guidance, scale, len(labels))
        check_whole_number("batch_size", 256 if batch_size is None else batch_size, 1)
        guided = bool(weights.any()) if guided is None else guided
        draw = self.sampler(num_steps=num_steps, sampler=sampler, seed=seed, v=v, eta=eta, guided=guided)
        size = min(batch_size or 256, len(labels))
        size += -size % self.mesh.size
        parts = []
        for start in range(0, len(labels), size):
            index = np.arange(start, start + size) % len(labels)  # past the end: computed and thrown away
            parts.append(draw(index, labels[index], weights[index]))
        return np.concatenate([gather_rows(part) for part in parts])[: len(labels)]

    def sampler(self, *, num_steps=None, sampler=None, seed=0, v=None, eta=None, guided=True):
        """draw(index [B], labels [B], weights [B]) → x̃ [B, …] on the mesh, whose size divides B: the compiled sampler.

        index: of the samples, with seed all that their noise depends on. num_steps: network calls T. sampler:
        "ancestral", which takes v, or "ddim", which takes eta. What is not given is as in config.sample.
        guided: False leaves out the unconditional branch; the weights are then without effect.

        Compiles once per (B, num_steps, sampler, guided). Every process gives the same whole arrays.
        """
        sampler = self.config.sample.sampler if sampler is None else sampler
        num_steps = self.config.sample.num_steps if num_steps is None else num_steps
        check_whole_number("num_steps", num_steps, 2)
        check_whole_number("seed", seed, 0)
        noise = self.noise_option(sampler, v=v, eta=eta)
        diffusion = self.config.diffusion
        grid = logsnr_grid(num_steps, diffusion.schedule, diffusion.logsnr_min, diffusion.logsnr_max).astype(np.float32)

        def draw(index, labels, weights):
            batch = (index.astype(np.int32), labels.astype(np.int32), weights.astype(np.float32))
            placed = [place_global(self.mesh, array) for array in batch]
            return self._sample(self.params, jax.random.key(seed), *placed, grid, noise, sampler=sampler, guided=guided)

        return draw

    def noise_option(self, sampler, **given):
        """{option: value} for the sampler's own noise option, given or from the config."""
        takes = inspect.signature(choose("sampler", sampler, SAMPLERS)).parameters
        for name, value in given.items():
            if value is not None and name not in takes:
                raise UsageError(f"sampler {sampler} takes no {name}")
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; need a value in [0, 1]")
        pick = lambda name: self.config.sample[name] if given[name] is None else given[name]
        return {name: np.float32(pick(name)) for name in NOISE_OPTIONS if name in takes}

    def _run(self, params, key, index, labels, weights, logsnrs, noise, *, sampler, guided):
        """x̃ [B, …] for a batch of global indices, labels and weights, each [B]."""
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(index)
        z = jax.lax.with_sharding_constraint(initial_noise(keys, self.image_shape), batch_sharding(self.mesh))
        eps_fn = self.bind(params)
        guide = lambda: classifier_free(eps_fn, labels, weights, self.num_classes)
        denoise = guide() if guided else conditional(eps_fn, labels)
        return SAMPLERS[sampler](keys, denoise, z, logsnrs, clip=self.is_image, **noise)


def check_whole_number(name, value, least):
    """Raises UsageError unless value is an integer in [least, 2³²)."""
    if not isinstance(value, (int, np.integer)) or not least <= value < 2**32:
        raise UsageError(f"{name} is {value!r}; need an integer of at least {least}, below 2³²")


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
