"""cfgjax: classifier-free guidance in JAX. `cfgjax.load(workdir).sample(labels=[3], guidance=1.0)`."""

__version__ = "0.1.0.dev0"
__all__ = ["__version__", "load", "load_guide"]


def load(workdir, step=None, ema=None, mesh=None):
    """The trained model of a workdir, ready to sample; see `cfgjax.models.model.load`."""
    from cfgjax.models.model import load  # here, so that `import cfgjax` does not import jax

    return load(workdir, step=step, ema=ema, mesh=mesh)


def load_guide(workdir, step=None, ema=None):
    """The noise-aware classifier of a workdir, a guide; see `cfgjax.models.guide.load_guide`."""
    from cfgjax.models.guide import load_guide

    return load_guide(workdir, step=step, ema=ema)
