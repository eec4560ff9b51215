"""cfgjax: classifier-free guidance in JAX. `cfgjax.load(workdir).sample(labels=[3], guidance=1.0)`."""

__version__ = "0.1.0.dev0"
__all__ = ["__version__", "load"]


def load(workdir, step=None, ema=None):
    """The trained model of a workdir, ready to sample; see `cfgjax.model.load`."""
    from cfgjax.model import load  # here, so that `import cfgjax` does not import jax

    return load(workdir, step=step, ema=ema)
