"""Feature networks, from whose outputs the metrics are computed. Names of metrics contain that of the network."""

import copy
import functools
import hashlib
from collections.abc import Callable

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, PyTree, Shaped

from cfgjax.base.errors import UsageError, choose
from cfgjax.base.files import sha256
from cfgjax.base.inception_weights import find_inception
from cfgjax.base.storage import Place, place
from cfgjax.data.batches import to_float
from cfgjax.data.sources.registry import mixture_of
from cfgjax.distributed.sharding import batch_sharding, make_mesh, replicated
from cfgjax.models.guide import params_digest
from cfgjax.models.network import check_params, make_network
from cfgjax.nets import inception
from cfgjax.runs.averages import load_params
from cfgjax.runs.data_settings import DataSettings
from cfgjax.runs.sampling_settings import EvaluateSettings
from cfgjax.runs.settings import Settings
from cfgjax.runs.workdir import read_settings

NetworkOutputs = dict[str, Float[Array, "n _size"]]

BATCH_SIZE, CPU_BATCH_SIZE = 128, 16  # images per call and device; on CPU a small batch is faster and takes less memory
PAPER_NAMES = {
    "FD": "FID",
    "sFD": "sFID",
    "KD": "KID",
    "IS": "IS",
    "FD_inf": "FID_inf",
    "MIND": "MIND",
}  # of metrics of Inception's features


class FeatureNetwork:
    """images → {"features": [N, D], "logits": [N, K], "spatial": [N, S]}, float32 numpy, jitted over local devices.

    name: "inception", "classifier" or "mixture". digest: SHA-256 of everything its outputs depend on.
    apply: (params, images [B, …] as in the data set, uint8 or points) → such a dict of arrays; "spatial" may be absent.
    judges: whether logit k is that of class k of the data. points: whether the features are the data themselves.
    batch_size: images per call on each device.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        apply: Callable[[PyTree, Array], NetworkOutputs],
        params: PyTree,
        *,
        judges: bool,
        points: bool = False,
    ) -> None:
        self.name, self.digest, self.judges, self.points = name, digest, judges, points
        self._mesh = make_mesh(devices=jax.local_devices())
        self._params = jax.device_put(params, replicated(self._mesh))
        self._apply = jax.jit(apply)
        self.batch_size = CPU_BATCH_SIZE if jax.default_backend() == "cpu" else BATCH_SIZE

    def replace(self, params: PyTree) -> "FeatureNetwork":
        """Returns the same network with other parameters. Both share their compiled programs."""
        other = copy.copy(self)
        other._params = jax.device_put(params, replicated(self._mesh))
        return other

    def sizes(self, images: Shaped[np.ndarray, "n ..."]) -> dict[str, int]:
        """Returns {name: width} of the outputs for such images."""
        one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
        return {name: out.shape[1] for name, out in jax.eval_shape(self._apply, self._params, one).items()}

    def metric(self, kind: str) -> str:
        """Returns the name of a distance or score of this network: FID for Inception's FD, otherwise FD-<name>."""
        return PAPER_NAMES[kind] if self.name == "inception" else f"{kind}-{self.name}"

    def __call__(self, images: Shaped[np.ndarray, "n ..."]) -> dict[str, Float[np.ndarray, "n _size"]]:
        """Returns the outputs for images [N, …], computed in batches of one size, of which the last is padded."""
        size = self.batch_size * self._mesh.size
        parts = []
        for start in range(0, len(images), size):
            batch = images[np.arange(start, start + size) % len(images)]
            parts.append(self._apply(self._params, jax.device_put(batch, batch_sharding(self._mesh))))
        joined = jax.tree.map(lambda *arrays: np.concatenate([np.asarray(a) for a in arrays]), *parts)
        return {name: array[: len(images)] for name, array in joined.items()}


def load_classifier(workdir: str | Place | None, data: DataSettings, hint: str) -> FeatureNetwork:
    """Returns the network of a classifier run for images of config.data `data`. hint: advice if there is none."""
    if workdir is None:
        raise UsageError(f"a classifier run is needed; {hint}")
    if not (place(workdir) / "config.json").exists():
        raise UsageError(f"there is no classifier run in {workdir}; {hint}")
    settings = read_settings(workdir)
    if not settings.is_classifier or settings.is_noisy_classifier:
        raise UsageError(f"{workdir} holds a {settings.model.name}, not a classifier of clean images; {hint}")
    for key in ("source", "num_classes", "image_shape"):
        theirs, ours = getattr(settings.data, key), getattr(data, key)
        if theirs != ours:
            raise UsageError(f"the classifier in {workdir} was trained on data.{key} {theirs}, not {ours}")
    params, _ = load_params(workdir, settings)
    check_params(workdir, settings, params)
    return classifier_features(settings, params)


def classifier_features(settings: Settings, params: PyTree) -> FeatureNetwork:
    """Returns the feature network of a classifier's settings and parameters."""
    net = make_network(settings)
    apply = lambda params, images: net.apply({"params": params}, to_float(images))
    return FeatureNetwork("classifier", params_digest(settings, params), apply, params, judges=True)


def load_inception(path: str | Place | None = None, resize: str = "tf1") -> FeatureNetwork:
    """Returns FID's Inception. path: by default $CFGJAX_INCEPTION or the file of `cfgjax download inception`."""
    choose("resize", resize, inception.RESIZES)
    path = find_inception(path)
    params = inception.parameters(inception.read_state_dict(path))

    def apply(params: PyTree, images: Array) -> NetworkOutputs:
        out = inception.apply(params, images, resize=resize)
        return {"features": out["pool3"], "logits": out["logits"], "spatial": out["spatial"]}

    return FeatureNetwork("inception", f"{sha256(path)}-{resize}", apply, params, judges=False)


def exact(data: DataSettings) -> FeatureNetwork:
    """Returns the feature network of a Gaussian mixture: the points themselves, and log p(c|x) as logits."""
    mixture = mixture_of(data)
    digest = hashlib.sha256(
        repr(tuple(data.options[name] for name in ("means", "stds", "weights"))).encode()
    ).hexdigest()
    apply = lambda params, points: {"features": points, "logits": mixture.log_posterior(points)}
    return FeatureNetwork("mixture", digest, apply, {}, judges=True, points=True)


def load_features(
    name: str,
    data: DataSettings,
    *,
    classifier: str | Place | None = None,
    inception: str | Place | None = None,
    resize: str = "tf1",
) -> FeatureNetwork:
    """Returns the feature network called `name`, for samples of a run on config.data `data`.

    classifier: workdir of a classifier run. inception: weight file. Raises UsageError if it cannot be loaded.
    """
    points = not data.is_image
    if points != (name == "mixture") or (name == "mixture" and data.source != "mixture"):
        kind = "points of a known mixture" if name == "mixture" else "images"
        raise UsageError(f"features {name!r} are for {kind}; the run's data are {data.source}")
    makers = {
        "classifier": functools.partial(load_classifier, classifier, data, hint(data)),
        "inception": functools.partial(load_inception, inception, resize),
        "mixture": functools.partial(exact, data),
    }
    return choose("feature network", name, makers)()


def load_networks(
    plan: EvaluateSettings, data: DataSettings, *, inception: str | Place | None = None, resize: str = "tf1"
) -> tuple[FeatureNetwork, FeatureNetwork | None]:
    """Returns (feature network, judge) of an evaluation. The judge is None if the network is one itself."""
    network = load_features(plan.features, data, classifier=plan.classifier, inception=inception, resize=resize)
    if network.judges or plan.classifier is None:
        return network, None
    return network, load_classifier(plan.classifier, data, hint(data))


def hint(data: DataSettings) -> str:
    """Returns advice on how to get a classifier run."""
    name = "fashion_mnist" if data.image_shape == (32, 32, 1) else "digits"
    command = f"cfgjax train --config=experiments/{name}_classifier.py --workdir=runs/{name}_classifier"
    return f"train one (for {name}: {command}) and pass it as --classifier=WORKDIR, or use --features=inception"
