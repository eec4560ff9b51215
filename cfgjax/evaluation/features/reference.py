"""Reference statistics: of a data source, or from a file.

| layout | arrays |
| --- | --- |
| ours | mean, cov, count (0: unknown), features, spatial_mean, spatial_cov, about (JSON: network, origin), sha256 |
| guided-diffusion | mu, sigma, mu_s, sigma_s; arr_0, images that precision and recall compare with, where it is there |
| pytorch-fid, EDM | mu, sigma |
| raw images | arr_0 or image, uint8 [N, H, W, C] |
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.base.json_files import HASH, parse_json
from cfgjax.data.batches import quantised
from cfgjax.evaluation.features.hashed import arrays_hash, write_arrays
from cfgjax.evaluation.metrics.manifold import neighbour_radii
from cfgjax.evaluation.metrics.scores import feature_rows, matrix_sqrt
from cfgjax.evaluation.metrics.sums import FeatureMoments, Rows, feature_blocks

NUM_NEIGHBOURS = 3  # k of precision and recall
MOST_FEATURES = 50_000  # examples whose features are kept, for precision, recall and KID
ARRAYS = ("mean", "cov", "features", "spatial_mean", "spatial_cov")
LAYOUTS = "mean, cov (ours); mu, sigma (guided-diffusion, pytorch-fid, EDM); arr_0 or image (uint8 images)"


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """What one feature network makes of real images.

    mean [D], cov [D, D], spatial_mean [S], spatial_cov [S, S]: float64, the spatial ones None where unknown.
    features: float32 [n, D] of some of the images, or None. count: of images, None where a file does not say.
    network: the feature network's digest, None where a file does not say. origin: which images, in words.
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
    def digest(self):
        """SHA-256 of the arrays: what a result records."""
        arrays = [getattr(self, name) for name in ARRAYS]
        return hashlib.sha256(b"".join(a.tobytes() for a in arrays if a is not None)).hexdigest()

    @functools.cached_property
    def root(self):
        """√cov."""
        return matrix_sqrt(self.cov)

    @functools.cached_property
    def spatial_root(self):
        """√spatial_cov."""
        return matrix_sqrt(self.spatial_cov)

    @functools.cached_property
    def radii(self):
        """Distances of the features to their k-th nearest neighbours, [n]."""
        return neighbour_radii(self.features, NUM_NEIGHBOURS)

    def save(self, path):
        """Writes our layout, atomically."""
        about = json.dumps({"network": self.network, "origin": self.origin})
        arrays = {name: array for name in ARRAYS if (array := getattr(self, name)) is not None}
        write_arrays(path, {"count": self.count or 0, "about": about, **arrays})


def make_reference(read, count, network, origin, advance=lambda images: None):
    """The `Reference` of `count` images. read, advance: as in `feature_blocks`.

    Features of at most MOST_FEATURES of them are kept: evenly spaced, so that data sorted by class lose none, and in a
    random order, so that KID's subsets have them all.
    """
    if count < 2:
        raise UsageError(f"a reference needs at least 2 images; {origin} has {count}")
    sizes = network.sizes(read(0, 1)[0])
    kept = np.unique(np.linspace(0, count - 1, min(count, MOST_FEATURES)).round().astype(int))
    moments, rows = FeatureMoments(sizes), Rows((sizes["features"],))
    for index, _, _, out in feature_blocks(read, count, network, advance=advance):
        moments.update(out)
        keep = np.isin(index, kept)
        rows.add(index[keep], out["features"][keep])
    found = moments.reduced()
    own, spatial = found["features"], found.get("spatial")
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


def of_dataset(dataset, network, origin, advance=lambda images: None):
    """The `Reference` of a `Dataset`, its images quantised as samples are."""
    prepare = (lambda points: points) if network.points else quantised
    read = lambda start, stop: (prepare(dataset.images(np.arange(start, stop))), dataset.label[start:stop])
    return make_reference(read, len(dataset), network, origin, advance)


def load_reference(path, network, image_shape, advance=lambda images: None):
    """The `Reference` in the file at path, of any layout above, for one network and images of one shape.

    Statistics that do not say whose features they are of are taken for Inception's. Images are compared as they are.
    Raises UsageError for files that cannot be read, of unknown layout, of another network, or of another size.
    """
    if not Path(path).exists():
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
    check(reference, network, image_shape, path)
    if "mean" in arrays:
        check_hash(arrays, path)
    return reference


def check_hash(arrays, path):
    """Raises UsageError if arrays of our layout do not match their hash. Files of older versions carry none."""
    others = {name: array for name, array in arrays.items() if name != HASH}
    if HASH in arrays and str(arrays[HASH]) != arrays_hash(others):
        raise UsageError(f"cannot read {path}: its content does not match its hash; repeat --make_reference")


def of_ours(arrays, path):
    """The Reference that `Reference.save` wrote."""
    try:
        about = parse_json(str(arrays["about"]).encode(), keys={"network": (str, type(None)), "origin": str})
        known = {name: arrays.get(name) for name in ARRAYS}
        if wrong := [name for name, array in known.items() if array is not None and array.dtype.kind not in "fiu"]:
            raise ValueError(f"its {wrong[0]} has dtype {known[wrong[0]].dtype}")
        return Reference(**known, count=int(arrays["count"]) or None, network=about["network"], origin=about["origin"])
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise UsageError(f"{path} is no reference: {type(e).__name__} {e}") from e


def of_published(arrays, path, network, image_shape):
    """The Reference of a file with mu and sigma, which are Inception's."""
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


def of_images(images, network, image_shape, path, advance=lambda images: None):
    """The Reference of uint8 images [N, H, W, C]."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != tuple(image_shape):
        expected = ("N", *image_shape)
        raise UsageError(f"{path} has images {images.dtype} {images.shape}; the samples are uint8 {expected}")
    read = lambda start, stop: (images[start:stop], None)
    return make_reference(read, len(images), network, f"{path}", advance)


def check(reference, network, image_shape, path):
    """Raises UsageError unless the reference is finite and of this network's features and sizes."""
    if reference.network not in (None, network.digest):
        raise UsageError(
            f"{path} was made with another feature network ({reference.network[:12]}) than this {network.name} "
            f"({network.digest[:12]}); make it anew with --make_reference"
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
