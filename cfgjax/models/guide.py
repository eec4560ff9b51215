"""A trained noise-aware classifier, whose gradient classifier guidance uses."""

import functools
import hashlib
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError
from cfgjax.data.sources.registry import check_labels
from cfgjax.diffusion.guidance import label_log_prob
from cfgjax.distributed.sharding import place_parameters
from cfgjax.models.network import bind_classifier, make_network
from cfgjax.runs.settings import Settings


class Guide:
    """A classifier p(c | z_λ) with its parameters, for the rule `classifier(…, guide=…)`.

    .settings, .num_classes, .image_shape, .levels (the process), .step are as trained.
    .bind(params) → logits_fn(z, logsnr).
    """

    def __init__(self, config: ConfigDict | Settings, params: PyTree, *, step: int | None = None) -> None:
        self.settings = settings = Settings.from_config(config)
        self.params, self.step = params, step
        self.num_classes, self.image_shape = settings.data.num_classes, settings.data.image_shape
        if settings.diffusion is None:
            raise UsageError(
                f"a {settings.model.name} takes no noise level and cannot guide; need a noise-aware classifier"
            )
        self.levels = settings.diffusion.levels
        self.bind = functools.partial(bind_classifier, make_network(settings), levels=self.levels)
        self._placed: dict[Mesh, PyTree] = {}
        self._log_prob = jax.jit(lambda params, z, logsnr: jax.nn.log_softmax(self.bind(params)(z, logsnr)))

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of what determines its outputs."""
        return params_digest(self.settings, self.params)

    def check(self, settings: Settings) -> None:
        """Raises UsageError unless the classifier is for samples of a model with these settings."""
        ours, theirs = self.settings, settings
        pairs = {
            "image size": (ours.data.image_shape, theirs.data.image_shape),
            "number of classes": (ours.data.num_classes, theirs.data.num_classes),
            "process": (process_description(ours), process_description(theirs)),
        }
        for what, (classifiers, models) in pairs.items():
            if classifiers != models:
                raise UsageError(f"the classifier's {what} is {classifiers}, the model's {models}; need the same")

    def on(self, mesh: Mesh) -> Callable:
        """Returns guide(z, logsnr [B], cond) → log p(cond["label"] | z) [B], with the parameters on the mesh."""
        return jax.tree_util.Partial(self._of_condition, self.params_on(mesh))

    def _of_condition(
        self, params: PyTree, z: Float[Array, "b ..."], logsnr: Float[Array, " b"], cond: dict[str, Array]
    ) -> Float[Array, " b"]:
        logits = self.bind(params)(z, logsnr)
        return label_log_prob(logits.astype(jnp.promote_types(z.dtype, jnp.float32)), cond["label"])

    def params_on(self, mesh: Mesh) -> PyTree:
        """Returns the parameters placed on the mesh."""
        if mesh not in self._placed:
            self._placed[mesh] = place_parameters(mesh, self.params)
        return self._placed[mesh]

    def log_prob(self, z: ArrayLike, logsnr: ArrayLike, label: ArrayLike) -> Float[Array, " b"]:
        """Returns log p(label | z) [B] at λ = logsnr. z: [B, …]; logsnr, label: a number or [B]."""
        z = jnp.asarray(z, jnp.float32)
        label = np.broadcast_to(np.asarray(label), z.shape[:1])
        check_labels(label, self.num_classes)
        log_probs = self._log_prob(self.params, z, jnp.broadcast_to(jnp.asarray(logsnr, jnp.float32), z.shape[:1]))
        return jnp.take_along_axis(log_probs, label[:, None], axis=1)[:, 0]


def process_description(settings: Settings) -> str | None:
    """Returns the process in a few words, or None if the network has none."""
    return None if settings.diffusion is None else settings.diffusion.described


def params_digest(settings: Settings, params: PyTree) -> str:
    """Returns the SHA-256 of what determines a network's outputs: config.model as it was given, and the parameters."""
    digest = hashlib.sha256(json.dumps(settings.given["model"], sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()
