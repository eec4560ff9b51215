"""Reference statistics, computed from a data source or read from a file.

| layout | arrays |
| --- | --- |
| ours | mean, cov, count (0: unknown), features, spatial_mean, spatial_cov, about (JSON: network, origin), sha256 |
| guided-diffusion | mu, sigma, mu_s, sigma_s; optionally arr_0, the images for precision and recall |
| pytorch-fid, EDM | mu, sigma |
| raw images | arr_0 or image, uint8 [N, H, W, C] |
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.base.json_files import HASH, parse_json
from cfgjax.base.storage import Place, place
from cfgjax.data.batches import quantised
from cfgjax.data.dataset import Dataset
from cfgjax.evaluation.features.hashed import arrays_hash, read_arrays, write_arrays
from cfgjax.evaluation.features.networks import FeatureNetwork
from cfgjax.evaluation.metrics.density import DENSITY_NEIGHBOURS
from cfgjax.evaluation.metrics.manifold import neighbour_distances
from cfgjax.evaluation.metrics.scores import feature_rows, matrix_sqrt
from cfgjax.evaluation.metrics.sums import Advance, FeatureMoments, IndexedRows, ReadImages, feature_blocks

log = logging.getLogger("cfgjax")

NUM_NEIGHBOURS = 3  # k of precision and recall
MAX_FEATURES = 50_000  # examples whose features are saved, for precision, recall and KID
ARRAYS = ("mean", "cov", "features", "spatial_mean", "spatial_cov")
LAYOUTS = "mean, cov (ours); mu, sigma (guided-diffusion, pytorch-fid, EDM); arr_0 or image (uint8 images)"


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of a feature network on real images.

    mean [D], cov [D, D], spatial_mean [S], spatial_cov [S, S]: float64; None for unknown spatial ones.
    features: float32 [n, D] of some of the images, or None. count: number of images, None if unknown.
    network: the feature network's digest, None if unknown. origin: describes the images.
    """

    mean: np.ndarray
    cov: np.ndarray
    features: np.ndarray | None
    spatial_mean: np.ndarray | None
    spatial_cov: np.ndarray | None
    count: int | None
    network: str | None
    origin: str

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the arrays, which results record."""
        arrays = [getattr(self, name) for name in ARRAYS]
        return hashlib.sha256(b"".join(a.tobytes() for a in arrays if a is not None)).hexdigest()

    @functools.cached_property
    def root(self) -> Float[np.ndarray, "d d"]:
        """Returns √cov."""
        return matrix_sqrt(self.cov)

    @functools.cached_property
    def spatial_root(self) -> Float[np.ndarray, "s s"]:
        """Returns √spatial_cov."""
        assert self.spatial_cov is not None
        return matrix_sqrt(self.spatial_cov)

    @functools.cached_property
    def neighbours(self) -> Float[np.ndarray, "n k"]:
        """Returns the distances of each feature vector to its nearest neighbours, at most 5, ascending."""
        assert self.features is not None
        return neighbour_distances(self.features, min(DENSITY_NEIGHBOURS, len(self.features) - 1))

    def radii(self, k: int) -> Float[np.ndarray, " n"]:
        """Returns the distance of each feature vector to its k-th nearest neighbour, k ≤ 5."""
        return self.neighbours[:, k - 1]

    def save(self, path: str | Place) -> None:
        """Writes a file of our layout, atomically."""
        about = json.dumps({"network": self.network, "origin": self.origin})
        arrays = {name: array for name in ARRAYS if (array := getattr(self, name)) is not None}
        write_arrays(place(path), {"count": self.count or 0, "about": about, **arrays})


def make_reference(
    read: ReadImages,
    count: int,
    network: FeatureNetwork,
    origin: str,
    advance: Advance = lambda images: None,
) -> Reference:
    """Returns the `Reference` of `count` images. read, advance: see `feature_blocks`.

    It has the features of at most MAX_FEATURES images: evenly spaced, so that data sorted by class lose no class, and
    in random order, so that each of KID's subsets has all classes.
    """
    if count < 2:
        raise UsageError(f"a reference needs at least 2 images; {origin} has {count}")
    sizes = network.sizes(read(0, 1)[0])
    kept = np.unique(np.linspace(0, count - 1, min(count, MAX_FEATURES)).round().astype(int))
    moments, rows = FeatureMoments(sizes), IndexedRows((sizes["features"],))
    for index, _, _, out in feature_blocks(read, count, network, advance=advance):
        moments.update(out)
        keep = np.isin(index, kept)
        rows.add(index[keep], out["features"][keep])
    reduced = moments.reduced()
    own, spatial = reduced["features"], reduced.get("spatial")
    return Reference(
        mean=own.mean,
        cov=own.cov,
        features=np.random.default_rng(0).permutation(rows.reduced()),
        spatial_mean=None if spatial is None else spatial.mean,
        spatial_cov=None if spatial is None else spatial.cov,
        count=count,
        network=network.digest,
        origin=origin,
    )


def of_dataset(
    dataset: Dataset, network: FeatureNetwork, origin: str, advance: Advance = lambda images: None
) -> Reference:
    """Returns the `Reference` of a data set, whose images are quantised in the same way as samples."""
    prepare = (lambda points: points) if network.points else quantised
    read = lambda start, stop: (prepare(dataset.images(np.arange(start, stop))), dataset.label[start:stop])
    return make_reference(read, len(dataset), network, origin, advance)


def load_reference(
    path: str | Place,
    network: FeatureNetwork,
    image_shape: Sequence[int],
    advance: Advance = lambda images: None,
) -> Reference:
    """Returns the `Reference` in a file of any layout above, for a network and images of one shape.

    Statistics that do not name their network are assumed to be Inception's. Raises UsageError for files that cannot be
    read, or have an unknown layout, another network, or another size.
    """
    if not place(path).exists():
        how = f"cfgjax evaluate --make-reference --workdir=RUN --out={path} makes one of a run's data"
        raise UsageError(f"cannot read {path}: No such file; {how}")
    arrays = read_npz(path)
    if "mean" in arrays:
        reference = of_ours(arrays, path)
    elif "mu" in arrays:
        reference = of_published(arrays, path, network, image_shape)
    elif (images := arrays.get("arr_0", arrays.get("image"))) is not None:
        return of_images(images, network, image_shape, path, advance)
    else:
        raise UsageError(f"{path} is no reference: it has {', '.join(arrays) or 'nothing'}; need {LAYOUTS}")
    check_reference(reference, network, image_shape, path)
    if "mean" in arrays:
        check_hash(arrays, path)
    return reference


def check_hash(arrays: Mapping[str, np.ndarray], path: str | Place) -> None:
    """Raises UsageError if arrays of our layout do not match their hash. Files of older versions have none."""
    others = {name: array for name, array in arrays.items() if name != HASH}
    if HASH in arrays and str(arrays[HASH]) != arrays_hash(others):
        raise UsageError(f"cannot read {path}: its content does not match its hash; repeat --make_reference")


def of_ours(arrays: Mapping[str, np.ndarray], path: str | Place) -> Reference:
    """Returns the reference that `Reference.save` wrote."""
    try:
        about = parse_json(str(arrays["about"]).encode(), keys={"network": (str, type(None)), "origin": str})
        known: dict[str, Any] = {name: arrays.get(name) for name in ARRAYS}
        if missing := [name for name in ("mean", "cov") if known[name] is None]:
            raise ValueError(f"it has no {missing[0]}")
        if wrong := [name for name, array in known.items() if array is not None and array.dtype.kind not in "fiu"]:
            raise ValueError(f"its {wrong[0]} has dtype {known[wrong[0]].dtype}")
        return Reference(**known, count=int(arrays["count"]) or None, network=about["network"], origin=about["origin"])
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise UsageError(f"{path} is no reference: {type(e).__name__} {e}") from e


def of_published(
    arrays: Mapping[str, np.ndarray], path: str | Place, network: FeatureNetwork, image_shape: Sequence[int]
) -> Reference:
    """Returns the reference of a file with mu and sigma of Inception's features."""
    if network.name != "inception":
        raise UsageError(f"{path} holds statistics of Inception's features, not of the {network.name}'s")
    if "sigma" not in arrays:
        raise UsageError(f"{path} has mu but no sigma")
    features = None
    if "arr_0" in arrays:
        features = of_images(arrays["arr_0"], network, image_shape, path).features
    known = [name for name in ("mu", "sigma", "mu_s", "sigma_s") if name in arrays]
    if wrong := [name for name in known if arrays[name].dtype.kind not in "fiu"]:
        raise UsageError(f"{path} has statistics that are not real numbers: {wrong[0]} is {arrays[wrong[0]].dtype}")
    statistics = {name: arrays[name].astype(np.float64) for name in known}
    return Reference(
        mean=statistics["mu"],
        cov=statistics["sigma"],
        features=features,
        spatial_mean=statistics.get("mu_s"),
        spatial_cov=statistics.get("sigma_s"),
        count=None,
        network=None,
        origin=f"{path}",
    )


def of_images(
    images: np.ndarray,
    network: FeatureNetwork,
    image_shape: Sequence[int],
    path: str | Place,
    advance: Advance = lambda images: None,
) -> Reference:
    """Returns the reference of uint8 images [N, H, W, C]."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != tuple(image_shape):
        expected = ("N", *image_shape)
        raise UsageError(f"{path} has images {images.dtype} {images.shape}; the samples are uint8 {expected}")
    read = lambda start, stop: (images[start:stop], np.full(stop - start, -1))  # the labels are unknown
    return make_reference(read, len(images), network, f"{path}", advance)


def check_reference(
    reference: Reference, network: FeatureNetwork, image_shape: Sequence[int], path: str | Place
) -> None:
    """Raises UsageError unless the reference is finite, was made with this network and has its sizes."""
    if reference.network not in (None, network.digest):
        raise UsageError(
            f"{path} was made with another feature network ({reference.network[:12]}) than this {network.name} "
            f"({network.digest[:12]}); make it again with --make_reference"
        )
    sizes = network.sizes(np.zeros((1, *image_shape), np.float32 if network.points else np.uint8))
    for kind, prefix in (("features", ""), ("spatial", "spatial_")):
        mean, cov = (getattr(reference, f"{prefix}{name}") for name in ("mean", "cov"))
        if mean is cov is None and kind == "spatial":
            continue
        size = sizes.get(kind)
        if np.shape(mean) != (size,) or np.shape(cov) != (size, size):
            shapes = f"mean {np.shape(mean)} and cov {np.shape(cov)}"
            raise UsageError(f"{path} has {kind} {shapes}; {network.name} has {size}")
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise UsageError(f"{path} has {kind} statistics that are not finite")
        if (np.diagonal(cov) < 0).any():
            raise UsageError(f"{path} has {kind} statistics with a negative variance")
    if reference.features is not None:
        try:
            feature_rows(reference.features, sizes["features"])
        except UsageError as e:
            raise UsageError(f"{path}: {e}") from e


def is_sound(path: Place) -> bool:
    """Whether a cached reference exists at path and matches its hash. A damaged one is reported."""
    if not path.exists():
        return False
    try:
        read_arrays(path)
        return True
    except UsageError as e:
        log.warning("%s; the reference is measured again", e)
        return False
