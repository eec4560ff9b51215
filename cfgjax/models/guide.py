"""A trained noise-aware classifier: what classifier guidance takes its gradient from."""

import dataclasses
import functools
import hashlib
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfgjax.base.errors import UsageError, choose
from cfgjax.data.sources.registry import check_labels
from cfgjax.distributed.sharding import place_parameters
from cfgjax.models.diffusion_config import diffusion_of
from cfgjax.models.network import bind_classifier, check_params, make_network
from cfgjax.runs.checkpoint import load_params
from cfgjax.runs.kinds import is_noisy_classifier
from cfgjax.runs.workdir import read_config

FORMS = {  # of classifier guidance: which samplers they are for, None for any
    "eps": None,  # ε̃ − s σ ∇ log p, ADM algorithm 2
    "z": ("ancestral",),  # μ + s Σ ∇ log p at z_λ, ADM algorithm 1 as ADM's code has it
    "mean": ("ancestral",),  # the same at μ
}


def load_classifier(workdir, step=None, ema=None):
    """The `Classifier` of a noise-aware classifier's run; step, ema: as in `cfgjax.load`."""
    config = read_config(workdir)
    if not is_noisy_classifier(config):
        raise UsageError(f"{workdir} holds no noise-aware classifier but a {config.model.name}")
    params, step = load_params(workdir, config, step, ema)
    check_params(workdir, config, params)
    return Classifier(config, params, step=step)


class Classifier:
    """A network p(c | z_λ) with its parameters.

    .config, .num_classes, .image_shape, .step are as trained; .bind(params) → logits_fn(z, logsnr).
    """

    def __init__(self, config, params, *, step=None):
        self.config, self.params, self.step = config, params, step
        self.num_classes, self.image_shape = config.data.num_classes, tuple(config.data.image_shape)
        self.bind = functools.partial(bind_classifier, make_network(config), levels=diffusion_of(config).levels)
        self._placed = {}
        self._log_prob = jax.jit(lambda params, z, logsnr: jax.nn.log_softmax(self.bind(params)(z, logsnr)))

    @functools.cached_property
    def digest(self):
        """SHA-256 of what determines its outputs."""
        return params_digest(self.config, self.params)

    def params_on(self, mesh):
        """The parameters, in their places on the mesh."""
        if mesh not in self._placed:
            self._placed[mesh] = place_parameters(mesh, self.params)
        return self._placed[mesh]

    def log_prob(self, z, logsnr, label):
        """log p(label | z) at λ = logsnr, float32 [B]. z: [B, …]; logsnr, label: a scalar or [B]."""
        z = jnp.asarray(z, jnp.float32)
        label = np.broadcast_to(np.asarray(label), z.shape[:1])
        check_labels(label, self.num_classes)
        log_probs = self._log_prob(self.params, z, jnp.broadcast_to(jnp.asarray(logsnr, jnp.float32), z.shape[:1]))
        return jnp.take_along_axis(log_probs, label[:, None], axis=1)[:, 0]


def params_digest(config, params):
    """SHA-256 of what determines a network's outputs."""
    digest = hashlib.sha256(json.dumps(config.model.to_dict(), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


class Kind(NamedTuple):
    """What of classifier guidance is compiled into a sampler."""

    bind: object
    form: str


@dataclasses.dataclass(frozen=True)
class ClassifierGuidance:
    """A `Classifier` and the form in which its gradient is used, a key of FORMS."""

    classifier: Classifier
    form: str = "eps"

    def __post_init__(self):
        choose("classifier form", self.form, FORMS)

    @property
    def kind(self):
        """The hashable part that sets what is compiled."""
        return Kind(self.classifier.bind, self.form)

    def check(self, config, sampler):
        """Raises UsageError unless the classifier is for samples of a model's config, and the form for the sampler."""
        ours, theirs = self.classifier.config, config
        pairs = {
            "image size": (tuple(ours.data.image_shape), tuple(theirs.data.image_shape)),
            "number of classes": (ours.data.num_classes, theirs.data.num_classes),
            "process": (diffusion_of(ours).described, diffusion_of(theirs).described),
        }
        for what, (classifiers, models) in pairs.items():
            if classifiers != models:
                raise UsageError(f"the classifier's {what} is {classifiers}, the model's {models}")
        samplers = FORMS[self.form]
        if samplers and sampler not in samplers:
            raise UsageError(f"classifier form {self.form!r} is for sampler {samplers[0]}, not {sampler}: take eps")
