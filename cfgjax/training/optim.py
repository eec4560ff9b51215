"""Optimizers and learning-rate schedules, by optax."""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import PyTree

from cfgjax.base.errors import UsageError, choose
from cfgjax.runs.training_settings import OptimizerSettings


def learning_rate_schedule(
    learning_rate: float, schedule: str = "constant", warmup_steps: int = 0, decay_steps: int | None = None
) -> optax.Schedule:
    """Returns optimizer step → learning rate: linear warm-up over warmup_steps, then constant, or to 0 at decay_steps.

    schedule: after the warm-up: "constant", "linear" or "cosine".
    """
    if schedule not in ("constant", "linear", "cosine"):
        raise UsageError(f"unknown optimizer.schedule {schedule!r}; known: constant, linear, cosine")
    if schedule == "constant":
        after = optax.constant_schedule(learning_rate)
    elif not decay_steps or decay_steps <= warmup_steps:
        raise UsageError(
            f"optimizer.decay_steps is {decay_steps}; {schedule} needs more than warmup_steps {warmup_steps}"
        )
    elif schedule == "linear":
        after = optax.linear_schedule(learning_rate, 0.0, decay_steps - warmup_steps)
    else:
        after = optax.cosine_decay_schedule(learning_rate, decay_steps - warmup_steps)
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps]) if warmup_steps else after


def make_optimizer(given: OptimizerSettings) -> optax.GradientTransformationExtraArgs:
    """Returns Adam or AdamW as `only_if_finite`: update(grads, state, params, finite=bool).

    weight_decay is decoupled (AdamW only). clip_norm is the global norm to which the gradients of the whole batch,
    after their mean over devices, are clipped; None for no clipping.
    """
    rate = learning_rate_schedule(given.learning_rate, given.schedule, given.warmup_steps, given.decay_steps)
    if given.name == "adam" and given.weight_decay:
        raise UsageError(f"optimizer.weight_decay is {given.weight_decay}, which adam does not apply; use adamw")
    makers = {
        "adam": lambda: optax.adam(rate, given.b1, given.b2, given.eps),
        "adamw": lambda: optax.adamw(rate, given.b1, given.b2, given.eps, weight_decay=given.weight_decay),
    }
    optimizer = choose("optimizer", given.name, makers)()
    if given.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(given.clip_norm), optimizer)
    return only_if_finite(optimizer)


def only_if_finite(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer `inner` whose update takes `finite`, a bool scalar: whether the gradients are finite.

    If they are not, the updates are zero, inner's state does not change, and the step is counted. This is
    `optax.apply_if_finite`, with the same state, without checking every gradient a second time, which would be a third
    of the optimizer's operations.
    """

    def update(
        updates: PyTree, state: optax.ApplyIfFiniteState, params: PyTree = None, *, finite: Array | bool
    ) -> tuple[PyTree, optax.ApplyIfFiniteState]:
        updates, inner_state = inner.update(updates, state.inner_state, params)
        return jax.tree.map(lambda u: jnp.where(finite, u, 0), updates), optax.ApplyIfFiniteState(
            notfinite_count=jnp.where(finite, 0, optax.safe_increment(state.notfinite_count)),
            last_finite=finite,
            total_notfinite=jnp.where(finite, state.total_notfinite, optax.safe_increment(state.total_notfinite)),
            inner_state=optax.tree.where(finite, inner_state, state.inner_state),
        )

    init = optax.apply_if_finite(inner, max_consecutive_errors=0).init
    return optax.GradientTransformationExtraArgs(init, update)
