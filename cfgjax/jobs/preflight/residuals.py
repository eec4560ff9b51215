"""Finds the arrays that a backward pass keeps from its forward pass, from JAX's trace, before compilation."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.extend.core import Jaxpr, Var
from jaxtyping import PyTree

CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint"}
PRODUCTS = {"conv_general_dilated", "dot_general"}  # both their operands and their results are in memory
FUSED = {  # recomputed by their consumers, at a cost of a few operations per element
    *("add", "sub", "mul", "div", "neg", "exp", "log", "log1p", "logistic", "tanh", "sqrt", "rsqrt", "square", "abs"),
    *("max", "min", "pow", "integer_pow", "sign", "erf", "sin", "cos", "select_n", "where", "clamp", "add_any"),
    *("stop_gradient", "copy", "iota"),
    *("convert_element_type", "reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "slice"),
    *("concatenate", "pad", "rev", "split", "reduce_precision", "name", "optimization_barrier"),
}


@dataclasses.dataclass(eq=False, frozen=True)
class Value:
    """An array of a trace: its shape and dtype, the primitive that computes it (None for an input) and its inputs."""

    aval: Any
    primitive: str | None = None
    inputs: tuple["Value", ...] = ()


class Kept(NamedTuple):
    """Shapes of the arrays kept. named: all that JAX requests. least: what remains if the compiler fuses all it can."""

    named: list[jax.ShapeDtypeStruct]
    least: list[jax.ShapeDtypeStruct]


def residuals(loss: Callable[..., Array], params: PyTree, *inputs: PyTree) -> Kept:
    """Returns the `Kept` of the gradient of the scalar loss(params, *inputs) with respect to params.

    The arguments are trees of shapes. params themselves are not counted. `named` has each residual of `jax.vjp` once,
    including parameters cast to another dtype and excluding what `jax.checkpoint` recomputes. `least` traces each
    residual back through cheap operations to results and operands of products, reductions, masks and the like.
    """
    traced = jax.make_jaxpr(lambda *given: jax.vjp(lambda p: loss(p, *given[1:]), given[0])[1])(params, *inputs)
    jaxpr = traced.jaxpr
    given = [Value(var.aval) for var in [*jaxpr.constvars, *jaxpr.invars]]
    values: list[Value] = []
    found = dict.fromkeys(value for value in expand(jaxpr, given, values) if value is not None)
    free = set(given[len(jaxpr.constvars) :][: len(jax.tree.leaves(params))])
    operands = {operand for value in values if value.primitive in PRODUCTS for operand in value.inputs}
    shapes = lambda kept: [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in kept if v not in free]
    return Kept(shapes(found), shapes(anchors(found, operands)))


def expand(jaxpr: Jaxpr, given: Sequence[Value | None], values: list[Value]) -> list[Value | None]:
    """Returns the Values of jaxpr's results (None for literals) and appends all computed Values to `values`.

    given: the Values of its constants and inputs. Each call is inlined.
    """
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))
    value_of = lambda var: known[var] if isinstance(var, Var) else None
    for equation in jaxpr.eqns:
        inputs = [value_of(var) for var in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name in CALLS and inner is not None:
            constants = [Value(jax.typeof(constant)) for constant in getattr(inner, "consts", ())]
            results: Sequence[Value | None] = expand(getattr(inner, "jaxpr", inner), [*constants, *inputs], values)
        else:
            made_of = tuple(value for value in inputs if value is not None)
            computed = [Value(var.aval, equation.primitive.name, made_of) for var in equation.outvars]
            values += computed
            results = computed
        known.update(zip(equation.outvars, results, strict=True))
    return [value_of(var) for var in jaxpr.outvars]


def anchors(found: Iterable[Value], operands: Set[Value]) -> list[Value]:
    """Returns the values in memory from which the values in `found` can be computed."""
    kept: dict[Value, None] = {}
    seen, waiting = set(), list(found)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        if value in operands or value.primitive not in FUSED:
            kept[value] = None
        else:
            waiting += value.inputs
    return list(kept)
