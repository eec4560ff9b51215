"""A trained model, to predict and to sample with: `load(workdir).sample(labels, guidance=…)`."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree, Shaped
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError
from cfgjax.base.finite import check_finite_samples
from cfgjax.base.progress import compiling
from cfgjax.base.storage import Place
from cfgjax.data.batches import to_uint8
from cfgjax.data.sources.registry import check_labels
from cfgjax.diffusion.contracts import naming_values
from cfgjax.diffusion.guidance import uses_null
from cfgjax.diffusion.prediction import Prediction, parse_parametrisation
from cfgjax.distributed.collectives import gather_rows
from cfgjax.distributed.sharding import make_mesh, on_part, place_global, place_parameters
from cfgjax.models import arguments, groups, weak
from cfgjax.models.binding import (
    Trajectory,
    as_argument,
    check_together,
    on_mesh,
    rule_rows,
    rule_value,
    sampler_value,
    sampling_grid,
)
from cfgjax.models.description import describe_model
from cfgjax.models.network import bind, check_upsampler, has_null_label, make_network
from cfgjax.models.network_inputs import (
    CLEAN_LOGSNR,
    check_low_res,
    check_low_res_logsnr,
    check_own_inputs,
    check_upsamples,
    own_inputs,
)
from cfgjax.models.sampler_program import run_prediction, run_program
from cfgjax.models.usable_rules import check_perturbed, usable_rules
from cfgjax.runs.sample_options import SampleOptions
from cfgjax.runs.settings import Settings

PerSample = Shaped[np.ndarray, " b"]


class Model:
    """A network with its parameters, and the samplers compiled for it.

    `cfgjax.load` returns the model of a run. config: of the run. params: parameters of the network; if mesh is given,
    they must already be placed on it. step, ema: of the checkpoint. mesh: the devices that share each batch; by default
    all. bind_params: a function params → predict(z, logsnr, cond), which is used instead of the config's network.
    workdir: the folder of the run. classes: the names of the classes in the order of the labels. step, ema, workdir and
    classes are None if they are not known. Raises UsageError for the config of a classifier.

    .settings, .num_classes, .image_shape and .levels (the process) are those of the run; .step and .ema those of the
    checkpoint; .options are the defaults of `sample`. Replacing .params does not recompile anything. .bind(params)
    returns the predictor, for use in other programs.
    """

    def __init__(
        self,
        config: ConfigDict | Settings,
        params: PyTree,
        *,
        step: int | None = None,
        ema: float | None = None,
        mesh: Mesh | None = None,
        bind_params: Callable | None = None,
        workdir: str | Place | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.settings, self.step, self.ema = Settings.from_config(config), step, ema
        self.workdir, self.classes = workdir, classes
        data, diffusion = self.settings.data, self.settings.diffusion
        if diffusion is None or self.settings.sample is None:
            raise UsageError(
                f"a {self.settings.model.name} is a classifier, which draws no samples; need a diffusion model"
            )
        self.num_classes, self.image_shape, self.is_image = data.num_classes, data.image_shape, data.is_image
        self.diffusion, self.defaults = diffusion, self.settings.sample
        self.options = self.defaults.sample_options
        self.levels, self.learned_variance = diffusion.levels, diffusion.learned_variance
        network = self.network = make_network(self.settings)
        pair = parse_parametrisation(diffusion.parametrisation)
        self.bind = bind_params or functools.partial(bind, network, levels=self.levels, parametrisation=pair)
        self.has_null_label = bind_params is not None or (has_null_label(network) and diffusion.p_uncond > 0)
        check_upsampler(network, data)
        self.low_res_shape, self.low_res_logsnr_min = data.low_res_shape, diffusion.low_res_logsnr_min
        self.own_inputs = own_inputs(network)
        self.mesh = make_mesh() if mesh is None else mesh
        self.params = place_parameters(self.mesh, params) if mesh is None else params
        self._predict = jax.jit(functools.partial(run_prediction, self))
        self._sample = jax.jit(functools.partial(run_program, self), static_argnames=("trajectory", "clip", "mesh"))

    def __repr__(self) -> str:
        return f"Model({describe_model(self.settings, self.step, self.ema)})"

    def put(self, params: PyTree) -> None:
        """Replaces the parameters by these numpy arrays, placed on the mesh. Nothing is recompiled."""
        self.params = place_parameters(self.mesh, params)

    def on(self, mesh: Mesh) -> Callable:
        """Returns this model as the `weak` of `autoguidance`: predict(z, logsnr [B], cond), a pytree."""
        return weak.predictor(self.bind, self.params, self.mesh, mesh)

    def check(self, settings: Settings) -> None:
        """Raises UsageError unless this model can be the weak one of a model with these settings."""
        weak.check_weak(self.settings, settings)

    def check_guidance(self, weights: Sequence[float]) -> None:
        """Raises UsageError if a weight w is not 0 and the network has no label "no condition"."""
        if any(weights) and not self.has_null_label:
            needed = "guidance needs a network trained with dropped labels (diffusion.p_uncond)"
            raise UsageError(f"{needed}; this one can do w = 0 or the rules {usable_rules(self)}, also inside others")

    def eps(self, z: ArrayLike, logsnr: ArrayLike, label: ArrayLike, **options: Any) -> Float[Array, "b ..."]:
        """Returns ε̂ [B, …], the predicted noise in z at λ = logsnr. The arguments are those of `predict`."""
        return self.predict(z, logsnr, label, **options).eps

    def predict(
        self,
        z: ArrayLike,
        logsnr: ArrayLike,
        label: ArrayLike,
        *,
        low_res: ArrayLike | None = None,
        conditions: Mapping[str, ArrayLike] | None = None,
    ) -> Prediction:
        """Returns the `Prediction` (x̂, ε̂), each float32 [B, …], for noisy examples z at λ = logsnr.

        z: [B, …]. logsnr: log(α²/σ²), a number or [B]. label: an int or [B]; num_classes is "no condition". low_res:
        the input of an upsampler, float [B, h, w, C] in [−1, 1], without noise. conditions: {name: [B, …]}, the further
        inputs of a network that takes more than the label. Raises UsageError for inputs that do not fit.
        """
        z = jnp.asarray(z, jnp.float32)
        logsnr = jnp.broadcast_to(jnp.asarray(logsnr, jnp.float32), z.shape[:1])
        label = np.broadcast_to(np.asarray(label), z.shape[:1])
        check_labels(label, self.num_classes + self.has_null_label)
        cond = {"label": jnp.asarray(label, jnp.int32), **check_own_inputs(conditions, self.own_inputs, len(z))}
        check_upsamples(low_res is not None, self.low_res_shape)
        if low_res is not None:
            cond["low_res"] = jnp.asarray(low_res, jnp.float32)
            cond |= {"low_res_logsnr": jnp.full(len(z), CLEAN_LOGSNR)} if self.low_res_logsnr_min is not None else {}
        return self._predict(self.params, z, logsnr, cond)

    def sample(self, labels: Any, guidance: Any = None, *, return_trajectory: bool = False, **options: Any) -> Any:
        """Returns guided samples, one for each label: images uint8 [N, H, W, C], other data float32 [N, …].

        labels: N ints in [0, num_classes), or names of classes. guidance: the weight w, a number or one per label; 0,
        the default, is the conditional model, −1 the unconditional one. return_trajectory: whether to return (samples,
        `Trajectory`). options, and errors: see `sample_float`.
        """
        x, trajectory = self._sample_all(labels, guidance, trajectory=return_trajectory, **options)
        images = to_uint8(x) if self.is_image else x
        return (images, trajectory) if return_trajectory else images

    def grid_image(self, labels: Any = None, *, per_cell: int | None = None, **options: Any) -> Any:
        """Returns a PIL image with a row for each label and a column for each combination of the options.

        labels: as in `sample`. per_cell: number of samples per label and combination. options: fields of
        `SampleOptions`, each one value or several, such as guidance=(0, 1, 3). What is not given is that of
        config.sample. The samples of a row start from the same noise in every column.
        """
        from cfgjax.models.sample_figures import picture_columns, sample_figure  # which import this module

        rows = arguments.label_array(self.defaults.labels if labels is None else labels, self.classes)
        columns = picture_columns(self, **options)
        return sample_figure(self, columns, labels=rows.tolist(), per_cell=per_cell or self.defaults.per_cell)

    def sample_float(self, labels: Any, guidance: Any = None, **options: Any) -> Float[np.ndarray, "n ..."]:
        """Returns guided samples x̃ before rounding to 8 bits, float32 [N, …]; clipped images are in [−1, 1].

        labels, guidance: as in `sample`. The options are:

        - `scale`: s = 1 + w, instead of guidance.
        - `batch_size`: samples per call of the compiled sampler; by default all, at most 256.
        - `z`: the noise at the first level, [N, …] like the samples, as the `z` of `samplers.driver.sample`; by default
          from the seed. Noise that a sampler adds later is from the seed in any case.
        - `on_ess`: called with a text of the effective sample size, for samplers that draw groups; by default logged.
        - `low_res`: the images that an upsampler enlarges, uint8 [N, h, w, C], or float32 in [−1, 1].
        - `low_res_logsnr`: λ of the noise to add to them, for a network that was trained with it; by default none.
        - `conditions`: {name: [N, …]}, the further inputs of a network that takes more than the label.
        - `rule`: a guidance rule, or its text such as "cfg()". By default that of config.sample; if then every weight
          is 0, the network is not evaluated without the label.
        - `sampler`: a sampler, or its text such as "ddim(eta=0.5)".
        - `num_steps`: number of levels T, or a spacing, see `Model.sampler`.
        - `grid`: a grid of levels, or its text such as "edm(rho=7)".
        - `clip`: "consistent", "x_only" or "none".
        - `seed`: an int. The noise of sample i depends only on seed and i.

        By default, sampler, num_steps, grid, clip and seed are those of config.sample.

        Raises UsageError for labels, weights or options that do not fit, and ArithmeticError if a sample is not finite.
        """
        return self._sample_all(labels, guidance, trajectory=False, **options)[0]

    def _sample_all(
        self,
        labels: Any,
        guidance: Any,
        *,
        scale: Any = None,
        batch_size: int | None = None,
        low_res: ArrayLike | None = None,
        low_res_logsnr: float | None = None,
        conditions: Mapping[str, ArrayLike] | None = None,
        z: ArrayLike | None = None,
        on_ess: Callable[[str], object] = groups.log_ess,
        trajectory: bool,
        **options: Any,
    ) -> tuple[Float[np.ndarray, "n ..."], Trajectory | None]:
        """Returns (x̃, their `Trajectory` or None)."""
        seen: Any  # what is recorded at each level
        labels = arguments.label_array(labels, self.classes)
        check_labels(labels, self.num_classes)
        weights = arguments.guidance_weights(guidance, scale, len(labels))
        arguments.check_whole_number("batch_size", 256 if batch_size is None else batch_size, 1)
        chosen = self.options.with_changes("Model", **options)
        sampler = sampler_value(chosen.sampler)
        rule = groups.rule_of_samples(self, options.get("rule"), weights, sampler)
        extra = check_own_inputs(conditions, self.own_inputs, len(labels))
        extra |= check_low_res(low_res, self.low_res_shape, len(labels))
        groups.check_groups(sampler, labels=labels, guidance=weights, **extra)
        extra |= {} if z is None else {"z": arguments.noise_array(z, (len(labels), *self.image_shape))}
        mesh, size = groups.batch_mesh(min(batch_size or 256, len(labels)), sampler, self.mesh)
        kept = groups.recorded(sampler, trajectory)
        draw = self.sampler(**options | {"rule": rule, "mesh": mesh}, low_res_logsnr=low_res_logsnr, trajectory=kept)
        parts = []
        for start in range(0, len(labels), size):
            index = np.arange(start, start + size) % len(labels)  # rows past the end are dropped
            rows = {name: array[index] for name, array in extra.items()}
            drawn = draw(index, labels[index], weights[index], rows, rule=rule_rows(rule, index))
            parts.append(jax.tree.map(gather_rows, drawn))
        found: Any = jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(labels)], *parts)
        x, seen = found if kept else (found, ())
        check_finite_samples(x, np.arange(len(labels)), labels, weights)
        if groups.group_size(sampler) > 1:
            on_ess(groups.ess_text(seen[-1] if trajectory else seen, sampler))
        if not trajectory:
            return x, None
        return x, Trajectory(self.grid(chosen.num_steps, chosen.grid), *(np.moveaxis(a, 1, 0) for a in seen))

    def sampler(
        self, *, low_res_logsnr: float | None = None, trajectory: Any = False, mesh: Mesh | None = None, **options: Any
    ) -> Callable:
        """Returns the compiled sampler, draw(index [B], labels [B], weights [B], extra=None) → x̃ [B, …].

        The results are on the model's mesh or a part of it (`part_of_mesh`), whose size must divide B. index: numbers
        of the samples, which with the seed determine the noise. extra: {name: [B, …]}, the inputs besides the label,
        such as "low_res" in [−1, 1]. With several processes, each passes the same complete arrays.

        low_res_logsnr: as in `sample_float`. trajectory: if True, draw returns (x̃, (z, x̃)), where the last two are of
        every level, [B, T, …]. If it is a function, the `save` of `samplers.driver.sample`, draw returns (x̃, what save
        returned at every level). options: fields of `SampleOptions`, by default those of config.sample. rule is used
        unchanged, even if every weight is 0. num_steps is T, or in discrete time a spacing, see `levels.Discrete.grid`.

        Compiles once for each B, number of steps, rule, sampler and clip. Other numbers in the rule, sampler or grid do
        not recompile anything. Raises UsageError for options that do not fit each other or the model.
        """
        chosen: SampleOptions = self.options.with_changes("Model", **options)
        rule, sampler = rule_value(chosen.rule), sampler_value(chosen.sampler)
        check_together(rule, sampler, self)
        grid = self.grid(chosen.num_steps, chosen.grid)
        self.check_guidance([uses_null(rule)])
        check_perturbed(rule, self)
        devices, clip = self.mesh if mesh is None else mesh, chosen.clip if self.is_image else "none"
        on_mesh(rule, self.settings, self.mesh)
        noisy, values = check_low_res_logsnr(low_res_logsnr, self.low_res_logsnr_min), as_argument(sampler)

        def draw(index: PerSample, labels: PerSample, weights: PerSample, extra: Any = None, rule: Any = rule) -> Any:
            batch = {"index": index.astype(np.int32), "label": labels.astype(np.int32), "weight": weights.astype("f4")}
            batch |= extra or {}
            check_own_inputs({n: batch[n] for n in self.own_inputs if n in batch}, self.own_inputs, len(index))
            placed = {name: place_global(devices, array) for name, array in batch.items()}
            placed_rule = as_argument(on_mesh(rule, self.settings, devices))
            programs = {"rule": jax.tree.structure(placed_rule), "sampler": jax.tree.structure(values)}
            guided = "guided " * uses_null(rule)
            with compiling(self, f"the {guided}sampler ({len(grid)} steps, batch {len(index)})", programs):
                params, key = on_part(devices, self.params), jax.random.key(chosen.seed)
                given = params, key, placed, grid, placed_rule, values, noisy
                with naming_values(rule=rule, sampler=sampler):
                    return self._sample(*given, trajectory=trajectory, clip=clip, mesh=devices)

        return draw

    def grid(self, num_steps: int | str | None = None, grid: Any = None) -> Float[np.ndarray, " t"]:
        """Returns λ [T] of the levels of a sampler, increasing, float32.

        num_steps, grid: as in `sample_float`, by default those of config.sample.
        """
        return sampling_grid(self.levels, self.options.with_changes("Model", num_steps=num_steps, grid=grid))
