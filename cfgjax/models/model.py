"""A trained model: `load(workdir).sample(labels, guidance=…)`, with no training code in sight."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from cfgjax.base.errors import UsageError, choose
from cfgjax.base.finite import check_samples
from cfgjax.base.progress import compiling
from cfgjax.data.batches import to_float, to_uint8
from cfgjax.data.sources.registry import check_images, check_labels
from cfgjax.diffusion import guidance as rules
from cfgjax.diffusion.process import diffuse, split_variance
from cfgjax.diffusion.samplers import SAMPLERS, initial_noise, noise_at
from cfgjax.distributed.collectives import gather_rows
from cfgjax.distributed.sharding import batch_sharding, make_mesh, place_global, place_parameters
from cfgjax.models import arguments
from cfgjax.models.diffusion_config import diffusion_of
from cfgjax.models.guide import ClassifierGuidance
from cfgjax.models.network import CLEAN_LOGSNR, bind, check_params, has_null_label, make_network, takes_low_res
from cfgjax.runs.checkpoint import load_params
from cfgjax.runs.kinds import is_classifier
from cfgjax.runs.workdir import read_config

NOISE_OPTIONS = ("v", "eta")  # how much noise a sampler adds; which one it takes is in its signature
LOW_RES_STEP = 2**32 - 2  # of the noise in low-resolution images, where samplers have their step


def load(workdir, step=None, ema=None, mesh=None):
    """The `Model` of a run's newest whole checkpoint, or of `step`.

    ema: a rate of config.ema.rates; by default the first; 0 for the parameters without averaging. mesh: a
    `sharding.make_mesh`, over whose fsdp axis the parameters are split; all devices, each with all of them, by default.
    Raises UsageError where there is no such run, step or rate.
    """
    config = read_config(workdir)
    if is_classifier(config):
        raise UsageError(f"{workdir} holds a classifier ({config.model.name}), which draws no samples")
    params, step = load_params(workdir, config, step, ema)
    check_params(workdir, config, params)
    model = Model(config, None, step=step, mesh=make_mesh() if mesh is None else mesh)
    model.put(params)
    return model


class Model:
    """A network with its parameters, and the samplers compiled for it.

    params: as the network has them. mesh: whose devices share each batch, with params in place on it; by default all
    devices. bind_params: params → eps_fn, where the ε-predictor is another than the config's network.
    .config, .num_classes, .image_shape, .levels (the process), .step (of the checkpoint) are as trained. .params may be
    replaced: what is compiled stays. .bind(params): the ε-predictor itself, for programs of one's own.
    """

    def __init__(self, config, params, *, step=None, mesh=None, bind_params=None):
        self.config, self.step = config, step
        self.num_classes, self.image_shape = config.data.num_classes, tuple(config.data.image_shape)
        self.is_image = len(self.image_shape) == 3
        diffusion = diffusion_of(config)
        self.levels, self.learned_variance = diffusion.levels, diffusion.learned_variance
        network = make_network(config)
        self.bind = bind_params or functools.partial(bind, network, levels=self.levels)
        trained_null = has_null_label(network) and diffusion.p_uncond > 0
        self.has_null_label = bind_params is not None or trained_null
        self.low_res_shape = None
        if takes_low_res(network):
            factor = self.image_shape[0] // config.data.low_res_size
            self.low_res_shape = (*(side // factor for side in self.image_shape[:2]), self.image_shape[2])
        self.low_res_noise = diffusion.low_res_logsnr_min is not None
        self.mesh = make_mesh() if mesh is None else mesh
        self.params = params
        if mesh is None:
            self.put(params)
        self._eps = jax.jit(self._predict)
        self._sample = jax.jit(self._run, static_argnames=("sampler", "guided", "classifier"))

    def put(self, params):
        """Replaces the parameters by those given, numpy arrays, in their places on the mesh; what is compiled stays."""
        self.params = place_parameters(self.mesh, params)

    def check_guidance(self, weights):
        """Raises UsageError where a weight w is not 0 and the model knows no "no condition"."""
        if any(weights) and not self.has_null_label:
            needed = "guidance needs a network trained with dropped labels (diffusion.p_uncond)"
            raise UsageError(f"{needed}; this one has w = 0 alone")

    def eps(self, z, logsnr, label, *, low_res=None):
        """ε_θ(z, label) at λ = logsnr. z: [B, …]; logsnr, label: a scalar or [B]; label num_classes is "none".

        low_res: of an upsampler, float [B, h, w, C] in [−1, 1], without noise.
        """
        z = jnp.asarray(z, jnp.float32)
        logsnr = jnp.broadcast_to(jnp.asarray(logsnr, jnp.float32), z.shape[:1])
        label = np.broadcast_to(np.asarray(label), z.shape[:1])
        check_labels(label, self.num_classes + self.has_null_label)
        inputs = {}
        self._check_kind(low_res)
        if low_res is not None:
            inputs["low_res"] = jnp.asarray(low_res, jnp.float32)
            inputs |= {"low_res_logsnr": jnp.full(len(z), CLEAN_LOGSNR)} if self.low_res_noise else {}
        return self._eps(self.params, z, logsnr, jnp.asarray(label, jnp.int32), inputs)

    def _predict(self, params, z, logsnr, label, inputs):
        return split_variance(self.bind(params, **inputs)(z, logsnr, label), z.shape[-1])[0]

    def _check_kind(self, low_res):
        """Raises UsageError unless low_res is given to an upsampler, and to no other model."""
        if (low_res is None) != (self.low_res_shape is None):
            needs = f"low_res, images of shape {self.low_res_shape} (a cascade's --base draws them)"
            kind = "no upsampler" if self.low_res_shape is None else f"an upsampler and needs {needs}"
            raise UsageError(f"low_res is {'not ' if low_res is None else ''}given; the model is {kind}")

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
        classifier=None,
        classifier_scale=None,
        classifier_form="eps",
        low_res=None,
        low_res_logsnr=None,
    ):
        """x̃ of guided samples before rounding, float32 [N, …], images in [−1, 1].

        scale: s = 1 + w in place of guidance. batch_size: samples per call of the compiled sampler; by default all, at
        most 256. seed, i: all that the noise of sample i depends on. classifier, classifier_scale: a `Classifier` and
        the scale of its gradient, a number or one per label. low_res: of an upsampler, images uint8 [N, h, w, C], or
        float32 in [−1, 1]; low_res_logsnr: λ of the noise to add to them, where the network was trained with it;
        none by default. The other options are `sampler`'s; guided is by default whether a weight is not 0.

        Raises UsageError for labels, weights or options that do not fit, ArithmeticError if a sample is not finite.
        """
        labels = arguments.label_array(labels)
        check_labels(labels, self.num_classes)
        weights = arguments.guidance_weights(guidance, scale, len(labels))
        scales = arguments.per_label(
            "classifier_scale", 0.0 if classifier_scale is None else classifier_scale, len(labels)
        )
        if classifier is None and classifier_scale is not None:
            raise UsageError(f"classifier_scale is {classifier_scale} with no classifier")
        if classifier is not None and classifier_scale is None:
            raise UsageError("a classifier is given without classifier_scale")
        arguments.check_whole_number("batch_size", 256 if batch_size is None else batch_size, 1)
        guided = bool(weights.any()) if guided is None else guided
        options = dict(num_steps=num_steps, sampler=sampler, seed=seed, v=v, eta=eta, guided=guided)
        guide = None if classifier is None else ClassifierGuidance(classifier, classifier_form)
        draw = self.sampler(**options, classifier=guide, low_res_logsnr=low_res_logsnr)
        low_res = self._check_low_res(low_res, len(labels))
        size = min(batch_size or 256, len(labels))
        size += -size % self.mesh.size
        parts = []
        for start in range(0, len(labels), size):
            index = np.arange(start, start + size) % len(labels)  # past the end: computed and thrown away
            small = None if low_res is None else low_res[index]
            parts.append(draw(index, labels[index], weights[index], scales[index], small))
        x = np.concatenate([gather_rows(part) for part in parts])[: len(labels)]
        check_samples(x, np.arange(len(labels)), labels, weights)
        return x

    def _check_low_res(self, low_res, length):
        """low_res as float32, or None for a model that takes none."""
        self._check_kind(low_res)
        if low_res is None:
            return None
        low_res = np.asarray(low_res)
        check_images(low_res, self.low_res_shape)
        if len(low_res) != length:
            raise UsageError(f"low_res has {len(low_res)} images for {length} labels")
        return to_float(low_res)

    def sampler(
        self,
        *,
        num_steps=None,
        sampler=None,
        seed=0,
        v=None,
        eta=None,
        guided=True,
        classifier=None,
        low_res_logsnr=None,
    ):
        """draw(index [B], labels [B], weights [B], scales=None, low_res=None) → x̃ [B, …]: the compiled sampler.

        The results lie on the mesh, whose size divides B. index: of the samples, with seed all that their noise depends
        on. scales [B]: of a classifier's gradient. low_res: float32 [B, h, w, C], of an upsampler.

        num_steps: network calls T, or what `levels.Discrete.grid` takes. sampler: "ancestral", which takes v, or
        "ddim", which takes eta. What is not given is as in config.sample; v None is the learned one.
        guided: False leaves out the unconditional branch; the weights are then without effect. classifier: a
        `ClassifierGuidance`. low_res_logsnr: as in `sample_float`.

        Compiles once per (B, number of steps, sampler, guided, classifier). Every process gives the same whole arrays.
        """
        sampler = self.config.sample.sampler if sampler is None else sampler
        num_steps = self.config.sample.num_steps if num_steps is None else num_steps
        arguments.check_whole_number("seed", seed, 0)
        noise = self.noise_option(sampler, v=v, eta=eta)
        grid = self.grid(num_steps)
        self.check_guidance([guided])
        if classifier is not None:
            classifier.check(self.config, sampler)
        noisy = self._check_low_res_logsnr(low_res_logsnr)

        def draw(index, labels, weights, scales=None, low_res=None):
            batch = {"index": index.astype(np.int32), "label": labels.astype(np.int32), "weight": weights.astype("f4")}
            if classifier is not None:
                batch["scale"] = scales.astype(np.float32)
            if low_res is not None:
                batch["low_res"] = low_res
            placed = {name: place_global(self.mesh, array) for name, array in batch.items()}
            params = self.params, None if classifier is None else classifier.classifier.params_on(self.mesh)
            options = dict(sampler=sampler, guided=guided, classifier=classifier and classifier.kind)
            with compiling(self, f"the {'guided ' * guided}sampler ({len(grid)} steps, batch {len(index)})", options):
                return self._sample(params, jax.random.key(seed), placed, grid, noise, noisy, **options)

        return draw

    def grid(self, num_steps):
        """λ of the levels of a sampler of num_steps, float32 [T], increasing."""
        if not isinstance(num_steps, str):
            arguments.check_num_steps(num_steps)
        try:
            grid = self.levels.grid(num_steps)
        except ValueError as e:
            raise UsageError(str(e)) from None
        if len(grid) < 2:
            raise UsageError(f"num_steps is {num_steps}; need at least 2 steps")
        return grid.astype(np.float32)

    def noise_option(self, sampler, **given):
        """{option: value} for the sampler's own noise option, given or from the config; none where v is learned."""
        takes = inspect.signature(choose("sampler", sampler, SAMPLERS)).parameters
        for name, value in given.items():
            if value is not None and name not in takes:
                raise UsageError(f"sampler {sampler} takes no {name}")
            if value is not None:
                arguments.check_share(name, value)
        pick = lambda name: self.config.sample[name] if given[name] is None else given[name]
        options = {name: pick(name) for name in NOISE_OPTIONS if name in takes}
        if options.get("v", 0.0) is None and not self.learned_variance:
            raise UsageError("v is None, in config.sample too, and the network has no learned variance; give --v")
        return {name: np.float32(value) for name, value in options.items() if value is not None}

    def _check_low_res_logsnr(self, logsnr):
        """λ of the noise in low-resolution images as float32, or None for a network that takes none."""
        if logsnr is not None and not self.low_res_noise:
            raise UsageError(f"low_res_logsnr is {logsnr}; the network was not trained with noise in low_res")
        if not self.low_res_noise:
            return None
        least = self.config.diffusion.low_res_logsnr_min
        logsnr = CLEAN_LOGSNR if logsnr is None else logsnr
        if not arguments.is_number(logsnr) or not least <= logsnr <= CLEAN_LOGSNR:
            raise UsageError(f"low_res_logsnr is {logsnr!r}; the network was trained with {least:g} … {CLEAN_LOGSNR:g}")
        return np.float32(logsnr)

    def _run(self, params, key, batch, logsnrs, noise, low_res_logsnr, *, sampler, guided, classifier):
        """x̃ [B, …] for a batch of global indices, labels, weights and the like, each [B, …]."""
        params, classifier_params = params
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch["index"])
        z = jax.lax.with_sharding_constraint(initial_noise(keys, self.image_shape), batch_sharding(self.mesh))
        labels, inputs, options = batch["label"], {}, dict(noise)
        if "low_res" in batch:
            inputs["low_res"] = batch["low_res"]
        if low_res_logsnr is not None:
            inputs["low_res_logsnr"] = jnp.full(len(labels), low_res_logsnr)
            fresh = noise_at(keys, LOW_RES_STEP, self.low_res_shape)
            inputs["low_res"] = diffuse(batch["low_res"], fresh, inputs["low_res_logsnr"])
        eps_fn = self.bind(params, **inputs)
        guide = lambda: rules.classifier_free(eps_fn, labels, batch["weight"], self.num_classes)
        denoise = guide() if guided else rules.conditional(eps_fn, labels)
        if classifier is not None:
            score = rules.classifier_score(classifier.bind(classifier_params), labels)
            if classifier.form == "eps":
                denoise = rules.classifier_guided(denoise, score, batch["scale"])
            else:
                options["shift"] = rules.classifier_shift(score, batch["scale"], classifier.form)
        return SAMPLERS[sampler](keys, denoise, z, logsnrs, clip=self.is_image, **options)
