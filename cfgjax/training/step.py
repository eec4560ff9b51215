"""The optimizer step as a pure function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from cfgjax.base.compilation import optimised
from cfgjax.training import ema
from cfgjax.training.objective import Objective
from cfgjax.training.state import TrainState

Metrics = dict[str, Array]


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    ema_warmup: bool = False,
    accumulate_steps: int = 1,
) -> Callable:
    """Returns the pure function train_step(state, batch, key) → (state, {name: float32 scalar}).

    optimizer: from `optim.make_optimizer`. batch: {"image": float32 [B, …], "label": int32 [B]} and further conditions.
    key: of the run; the step draws from fold_in(key, state.step). accumulate_steps: number of parts of the batch, whose
    gradients are computed one after the other and averaged.

    A step whose loss or gradient is not finite changes only `step` and the optimizer's count of such steps. Metrics:
    loss; those of the objective; grad_norm before clipping; skipped, 0 or 1; skipped_in_row; skipped_total.
    """

    def mean_loss(params: PyTree, part: PyTree, dropout_key: PRNGKeyArray) -> tuple[Float[Array, ""], dict[str, Array]]:
        terms = objective.terms(params, part, dropout_key)
        return jnp.mean(terms["loss"]), terms

    def gradients(params: PyTree, batch: PyTree, dropout_key: PRNGKeyArray) -> tuple:
        grad_fn = jax.value_and_grad(mean_loss, has_aux=True)
        if accumulate_steps == 1:
            return grad_fn(params, batch, dropout_key)
        parts = jax.tree.map(lambda a: split_batch(a, accumulate_steps), batch)

        def accumulate(total: Any, indexed: Any) -> Any:
            i, part = indexed
            (loss, terms), grads = grad_fn(params, part, jax.random.fold_in(dropout_key, i))
            return jax.tree.map(lambda t, g: t + g / accumulate_steps, total, (loss, grads)), terms

        zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
        terms: PyTree
        (loss, grads), terms = jax.lax.scan(accumulate, zeros, (jnp.arange(accumulate_steps), parts))
        return (loss, jax.tree.map(join_batch, terms)), grads

    def train_step(state: TrainState, batch: dict[str, Array], key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        draw_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
        drawn = objective.draw(draw_key, batch, state.level_losses)
        (loss, terms), grads = gradients(state.params, drawn, dropout_key)
        with jax.named_scope("optimizer"):  # as profiles call these operations
            norm = optax.tree.norm(grads)  # not finite if squares overflow, which Adam stores
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params, finite=finite)
            params = optax.apply_updates(state.params, updates)
            averages = ema.update(state.ema, params, state.step, warmup=ema_warmup)
            averages = optax.tree.where(finite, averages, state.ema)
        kept = objective.observe(state.level_losses, terms, drawn)
        kept = optax.tree.where(finite, kept, state.level_losses)
        metrics = {
            "loss": loss,
            **objective.summary(terms, drawn),
            "grad_norm": norm,
            "skipped": 1.0 - finite,
            "skipped_in_row": opt_state.notfinite_count,
            "skipped_total": opt_state.total_notfinite,
        }
        metrics = {name: jnp.float32(value) for name, value in metrics.items()}
        return TrainState(state.step + 1, params, averages, opt_state, kept), metrics

    return train_step


def make_dispatch(train_step: Callable, mesh_shardings: Any) -> Any:
    """Returns the jitted dispatch(state, batches, key, signals=None) → (state, {name: [k]}) of k steps, which donates.

    batches: [k, B, …]. signals: int32 [number of devices], the stop signal of each process on its devices, 0 for none;
    the metrics then have "signal", the largest, which is the same in every process. mesh_shardings: output shardings of
    (state, metrics).
    """

    def dispatch(
        state: TrainState, batches: dict[str, Array], key: PRNGKeyArray, signals: Int[Array, " devices"] | None = None
    ) -> tuple[TrainState, Metrics]:
        k = jax.tree.leaves(batches)[0].shape[0]
        if k == 1:  # a scan of one would only cost compile time
            state, metrics = train_step(state, jax.tree.map(lambda a: a[0], batches), key)
            metrics = jax.tree.map(lambda m: m[None], metrics)
        else:
            state, metrics = jax.lax.scan(lambda state, batch: train_step(state, batch, key), state, batches)
        return state, metrics if signals is None else metrics | {"signal": jnp.full(k, signals.max(), jnp.float32)}

    return jax.jit(dispatch, donate_argnums=0, out_shardings=mesh_shardings, compiler_options=optimised(2))


def split_batch(a: Shaped[Array, "b ..."], parts: int) -> Shaped[Array, "parts _rows ..."]:
    """Returns a batch in parts, each with an equal share of every device's examples."""
    return a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1)


def join_batch(a: Shaped[Array, "parts rows ..."]) -> Shaped[Array, "_b ..."]:
    """Returns the batch that `split_batch` split."""
    return a.swapaxes(0, 1).reshape(-1, *a.shape[2:])
