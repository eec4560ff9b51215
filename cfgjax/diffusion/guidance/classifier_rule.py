"""Classifier guidance, ADM (Dhariwal & Nichol 2021, arXiv:2105.05233), added to another rule."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cfgjax.diffusion.guidance.attributes import at_zero, off, shifts_mean
from cfgjax.diffusion.guidance.cfg import Weight, cfg
from cfgjax.diffusion.guidance.denoiser import Denoiser, bind_rule, with_guided
from cfgjax.diffusion.guidance.wrapper import Around
from cfgjax.diffusion.prediction import Prediction, add_to_eps
from cfgjax.diffusion.process import RealLike, alpha_sigma, broadcast_left
from cfgjax.diffusion.specs import check_choice, number, tree


def label_log_prob(logits: Float[Array, "b k"], label: Int[Array, " b"]) -> Float[Array, " b"]:
    """Returns log p(label) in nats, the log-softmax of the logits at label."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]


def score_function(guide: Callable, cond: Any) -> Callable:
    """Returns score(z [B, …], logsnr) = ∇_z log p(cond | z), float32 or wider, of z's shape.

    guide: (z, logsnr [B], cond) → log p(cond | z) [B], each row a function of its own z alone.
    The gradient is that of the sum over the batch: a mean would divide every sample's guidance by B.
    """

    def score(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Float[Array, "b ..."]:
        logsnr = jnp.broadcast_to(logsnr, z.shape[:1])
        return jax.grad(lambda z: jnp.sum(guide(z, logsnr, cond)))(z.astype(jnp.promote_types(z.dtype, jnp.float32)))

    return score


@tree
@dataclass(frozen=True, repr=False)
class classifier(Around):
    """Adds s ∇ log p(c | z) of a classifier, s = scale, to the guidance of another rule.

    form: "eps", ε̃ − s σ ∇ at z_λ, ADM algorithm 2, for any sampler; or s Σ ∇ added to the mean of ancestral sampling,
    ADM algorithm 1, with the gradient at "z", z_λ, as in ADM's code, or at "mean", μ and λ', the point about which ADM
    expands log p(c | z_λ') (section 4.1).
    scale: a number or [B]. With an exact classifier and the unconditional model, scale s is w = s − 1 of `cfg`.
    guide: see `score_function`; a tree of its parameters, for instance `jax.tree_util.Partial(function, …)`. It has no
    text: a rule made from text gets its guide from the model that samples.
    """

    FORMS: ClassVar = ("eps", "z", "mean")

    rule: Any = field(default_factory=cfg)
    scale: Any = field(default=1.0, metadata={"per_sample": True})
    form: str = field(default="eps", metadata={"static": True})
    guide: Any = field(default=None, metadata={"text": False})

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", number("scale", self.scale))
        check_choice("form", self.form, self.FORMS)

    keeps_pair = False

    @property
    def shifts_mean(self) -> bool:
        return self.form != "eps" or shifts_mean(self.rule)

    @property
    def at_zero(self) -> "classifier":
        return classifier(at_zero(self.rule), self.scale, self.form, self.guide)

    @property
    def off(self) -> "classifier":
        return classifier(off(self.rule), self.scale, self.form, self.guide)

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        if self.guide is None:
            raise ValueError("the rule classifier has no guide; give guide=…, the classifier whose gradient it takes")
        inner, score = bind_rule(self.rule, predict, cond, null, w), score_function(self.guide, cond)

        def times_scale(gradient: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
            return broadcast_left(jnp.asarray(self.scale, jnp.float32), gradient) * gradient

        def with_gradient(
            prediction: Prediction, z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]
        ) -> Prediction:
            _, sigma = alpha_sigma(broadcast_left(logsnr, z))
            return add_to_eps(prediction, -sigma * times_scale(score(z, logsnr)), logsnr)

        def apply(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> tuple[Prediction, Any]:
            prediction, memory = inner(z, logsnr, memory)
            return with_gradient(prediction, z, logsnr), memory

        def shift(
            z: Float[Array, "b ..."],
            mean: Float[Array, "b ..."],
            logsnr: Float[RealLike, "..."],
            logsnr_next: Float[RealLike, "..."],
        ) -> Float[Array, "b ..."]:
            gradient = score(z, logsnr) if self.form == "z" else score(mean, logsnr_next)
            found = times_scale(gradient)
            return found if inner.shift is None else found + inner.shift(z, mean, logsnr, logsnr_next)

        if self.form == "eps" and inner.branches is None:
            return Denoiser(apply, inner.init, inner.shift)
        if self.form == "eps":
            return with_guided(inner, lambda found, z, logsnr: with_gradient(found.guided, z, logsnr))
        return Denoiser(inner.apply, inner.init, shift, inner.branches)
