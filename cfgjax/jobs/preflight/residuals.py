"""What a backward pass keeps of its forward pass, read from JAX's trace of it, before any compiler sees it."""

import dataclasses
from typing import Any, NamedTuple

import jax
from jax.extend.core import Var

CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat", "checkpoint"}
PRODUCTS = {"conv_general_dilated", "dot_general"}  # their operands are in memory too, not only their results
FUSED = {  # computed anew inside what reads them, at the cost of a few operations per element
    *("add", "sub", "mul", "div", "neg", "exp", "log", "log1p", "logistic", "tanh", "sqrt", "rsqrt", "square", "abs"),
    *("max", "min", "pow", "integer_pow", "sign", "erf", "sin", "cos", "select_n", "where", "clamp", "add_any"),
    *("stop_gradient", "copy", "iota"),
    *("convert_element_type", "reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "slice"),
    *("concatenate", "pad", "rev", "split", "reduce_precision", "name", "optimization_barrier"),
}


@dataclasses.dataclass(eq=False, frozen=True)
class Value:
    """An array of a trace: its shape and dtype, the primitive that makes it (None: it is given) and of what."""

    aval: Any
    primitive: str | None = None
    inputs: tuple = ()


class Kept(NamedTuple):
    """Shapes of what is kept: named, all that JAX asks for; least, what remains if the compiler fuses all it can."""

    named: list
    least: list


def residuals(loss, params, *inputs):
    """The `Kept` of the gradient of loss(params, *inputs), a scalar, with respect to params, which are not counted.

    The arguments are trees of shapes. named are the residuals of `jax.vjp`, each array once: parameters cast to
    another dtype are among them, and what `jax.checkpoint` recomputes is not. least follows each of them back, through
    what is cheap to compute again, to results and operands of products, reductions, masks and the like.
    """
    traced = jax.make_jaxpr(lambda *given: jax.vjp(lambda p: loss(p, *given[1:]), given[0])[1])(params, *inputs)
    jaxpr: Any = traced.jaxpr
    given = [Value(var.aval) for var in [*jaxpr.constvars, *jaxpr.invars]]
    values: list = []
    found = dict.fromkeys(value for value in expand(jaxpr, given, values) if value is not None)
    free = set(given[len(jaxpr.constvars) :][: len(jax.tree.leaves(params))])
    operands = {operand for value in values if value.primitive in PRODUCTS for operand in value.inputs}
    shapes = lambda kept: [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in kept if v not in free]
    return Kept(shapes(found), shapes(anchors(found, operands)))


def expand(jaxpr, given, values):
    """The Values of jaxpr's results, None for literals, from those of its constants and inputs; all go into `values`.

    Calls are replaced by what is in them, anew each time.
    """
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], given, strict=True))
    value_of = lambda var: known[var] if isinstance(var, Var) else None
    for equation in jaxpr.eqns:
        inputs = [value_of(var) for var in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name in CALLS and inner is not None:
            constants = [Value(jax.typeof(constant)) for constant in getattr(inner, "consts", ())]
            results = expand(getattr(inner, "jaxpr", inner), [*constants, *inputs], values)
        else:
            made_of = tuple(value for value in inputs if value is not None)
            results = [Value(var.aval, equation.primitive.name, made_of) for var in equation.outvars]
            values += results
        known.update(zip(equation.outvars, results, strict=True))
    return [value_of(var) for var in jaxpr.outvars]


def anchors(found, operands):
    """The values in memory from which those found can be computed, in the order of finding them."""
    kept: dict = {}
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
