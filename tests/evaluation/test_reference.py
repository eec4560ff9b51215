import dataclasses
import os

import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.data.dataset import Dataset, Stored
from cfgjax.evaluation.features import reference as module
from cfgjax.evaluation.features.networks import FeatureNetwork
from cfgjax.evaluation.features.reference import load_reference, make_reference, of_dataset
from cfgjax.evaluation.frontier.frontier import find_reference
from cfgjax.evaluation.metrics import sums
from cfgjax.evaluation.metrics.scores import kernel_distance

SHAPE = (4, 4, 1)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, *SHAPE), np.uint8)
WEIGHTS = {name: RNG.normal(size=(16, size)) for name, size in {"features": 6, "logits": 5, "spatial": 3}.items()}


def network_called(name, digest="0123456789abcdef"):
    flat = lambda images: images.reshape(len(images), -1).astype(jnp.float32)
    apply = lambda params, images: {key: flat(images) @ params[key] for key in params}
    return FeatureNetwork(name, digest, apply, WEIGHTS, judges=False)


INCEPTION, CLASSIFIER = network_called("inception"), network_called("classifier")
ARRAYS = ("mean", "cov", "features", "spatial_mean", "spatial_cov")


@pytest.fixture(scope="module")
def reference():
    read = lambda start, stop: (IMAGES[start:stop], None)
    return make_reference(read, len(IMAGES), INCEPTION, "fifty images")


@pytest.fixture
def saved(tmp_path):
    """(name=array, …) → the path of an npz of them."""

    def save(**arrays):
        np.savez(tmp_path / "given.npz", **arrays)
        return tmp_path / "given.npz"

    return save


@pytest.fixture(scope="module")
def published(reference):
    """The arrays of the guided-diffusion layout."""
    return {
        "arr_0": IMAGES,
        "mu": reference.mean,
        "sigma": reference.cov,
        "mu_s": reference.spatial_mean,
        "sigma_s": reference.spatial_cov,
    }


def assert_same(a, b, names=ARRAYS):
    for name in names:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype and np.array_equal(x, y), name


def kept(reference):
    """The indices of the images whose features a reference has, in its order."""
    return [int(*np.flatnonzero((row == INCEPTION(IMAGES)["features"]).all(axis=1))) for row in reference.features]


def test_statistics_equal_those_of_the_features(reference):
    out = INCEPTION(IMAGES)
    for name, prefix in [("features", ""), ("spatial", "spatial_")]:
        np.testing.assert_allclose(getattr(reference, f"{prefix}mean"), out[name].mean(axis=0, dtype=float), rtol=1e-9)
        np.testing.assert_allclose(getattr(reference, f"{prefix}cov"), np.cov(out[name].astype(float).T), rtol=1e-8)
    assert sorted(kept(reference)) == list(range(50))
    assert reference.count == 50


def test_our_layout_is_read_back_unchanged(reference, tmp_path):
    reference.save(tmp_path / "ours.npz")
    found = load_reference(tmp_path / "ours.npz", INCEPTION, SHAPE)
    assert_same(found, reference)
    assert (found.count, found.network, found.origin) == (50, INCEPTION.digest, "fifty images")
    assert found.digest == reference.digest


def test_a_published_reference_can_be_saved_in_our_layout(saved, published, tmp_path):
    found = load_reference(saved(**published), INCEPTION, SHAPE)
    found.save(tmp_path / "ours.npz")
    again = load_reference(tmp_path / "ours.npz", INCEPTION, SHAPE)
    assert_same(again, found)
    assert (again.count, again.network) == (None, None)


def test_the_layout_of_guided_diffusion_is_read(saved, published, reference):
    found = load_reference(saved(**published), INCEPTION, SHAPE)
    assert_same(found, reference)
    assert found.count is found.network is None
    assert found.digest == reference.digest


def test_a_file_with_only_mean_and_covariance_is_read(saved, reference):
    found = load_reference(saved(mu=reference.mean, sigma=reference.cov), INCEPTION, SHAPE)
    assert_same(found, reference, ("mean", "cov"))
    assert found.features is found.spatial_mean is found.spatial_cov is None


@pytest.mark.parametrize("name", ["arr_0", "image"])
def test_raw_images_are_read_by_any_network(saved, reference, name):
    for network in (INCEPTION, CLASSIFIER):
        found = load_reference(saved(**{name: IMAGES}), network, SHAPE)
        assert_same(found, reference)
        assert (found.count, found.network) == (50, network.digest)


def test_stored_features_are_evenly_spread(monkeypatch, reference):
    monkeypatch.setattr(module, "MAX_FEATURES", 5)
    found = make_reference(lambda start, stop: (IMAGES[start:stop], None), 50, INCEPTION, "fifty images")
    assert sorted(kept(found)) == [0, 12, 24, 37, 49]
    assert_same(found, reference, ("mean", "cov"))


def test_stored_features_are_in_a_fixed_random_order(reference):
    again = make_reference(lambda start, stop: (IMAGES[start:stop], None), 50, INCEPTION, "fifty images")
    assert_same(again, reference)
    order = kept(reference)
    assert abs(np.corrcoef(order, np.arange(50))[0, 1]) < 0.3
    assert (np.diff(order) == 1).sum() < 5


def test_a_data_set_is_measured_as_bytes(reference):
    labels = np.zeros(50, np.int32)
    given = [Dataset(IMAGES, labels), Dataset(IMAGES.astype(np.float32) / 127.5 - 1, labels)]
    for dataset in given:
        assert of_dataset(dataset, INCEPTION, "").digest == reference.digest


def test_stored_images_are_measured_in_blocks_with_the_result_of_images_in_memory(reference):
    asked = []

    def read(index):
        asked.append(len(index))
        return IMAGES[index]

    dataset = Dataset(Stored(read, IMAGES.shape, "digest"), np.zeros(50, np.int32))
    assert of_dataset(dataset, INCEPTION, "").digest == reference.digest
    assert max(asked) <= sums.BLOCK and sum(asked) == 50 + 1  # one to see the sizes


def test_the_cached_reference_of_stored_images_is_used_without_reading_them(tmp_path):
    labels, looked = np.zeros(50, np.int32), []

    def find(digest, index=None):
        read = lambda i: looked.append(len(i)) or IMAGES[i]
        stored = Stored(read, IMAGES.shape, digest, index)
        silent = lambda images: None
        find_reference(None, lambda: Dataset(stored, labels), INCEPTION, SHAPE, tmp_path, silent)
        return sum(looked)

    first = find("one")
    assert first > 50 and find("one") == first
    assert find("another") == 2 * first
    assert find("one", np.arange(50)[::-1]) == 3 * first  # another part of the same


@pytest.mark.parametrize("name", ARRAYS)
def test_the_digest_changes_with_any_array(reference, name):
    array = getattr(reference, name).copy()
    array.flat[-1] = np.nextafter(array.flat[-1], np.inf, dtype=array.dtype)
    assert dataclasses.replace(reference, **{name: array}).digest != reference.digest
    assert dataclasses.replace(reference, origin="elsewhere").digest == reference.digest


def refused(path, told, network=INCEPTION, shape=SHAPE):
    """Checks that the file is refused in one line that names it."""
    with pytest.raises(UsageError) as e:
        load_reference(path, network, shape)
    assert str(path) in str(e.value)
    assert told in str(e.value)
    assert len(str(e.value).splitlines()) == 1


def test_an_unknown_layout_is_reported(saved):
    refused(saved(means=np.zeros(6)), "it has means; need mean, cov (ours); mu, sigma")
    refused(saved(), "it has nothing")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda a: {"mu": a["mu"][:5]}, "features mean (5,) and cov (6, 6); inception has 6"),
        (lambda a: {"sigma": a["sigma"][:5]}, "cov (5, 6)"),
        (lambda a: {"mu_s": a["mu_s"][:2]}, "spatial mean (2,)"),
        (lambda a: {"mu": a["mu"] * np.nan}, "features statistics that are not finite"),
        (lambda a: {"sigma_s": a["sigma_s"] + np.inf}, "spatial statistics that are not finite"),
        (lambda a: {"sigma": -a["sigma"]}, "features statistics with a negative variance"),
        (lambda a: {"mu": a["mu"] + 0j}, "mu is complex128"),
        (lambda a: {"sigma_s": a["sigma_s"].astype("U")}, "sigma_s is <U"),
        (
            lambda a: {"arr_0": a["arr_0"][..., :3, :]},
            "images uint8 (50, 4, 3, 1); the samples are uint8 ('N', 4, 4, 1)",
        ),
        (lambda a: {"arr_0": a["arr_0"].astype(np.float32)}, "images float32"),
    ],
)
def test_published_statistics_that_do_not_fit_are_reported(saved, published, change, told):
    refused(saved(**(published | change(published))), told)


def test_a_mean_without_a_covariance_is_reported(saved, reference):
    refused(saved(mu=reference.mean), "has mu but no sigma")


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("cov", "it has no cov"),
        ("spatial_cov", "spatial mean (3,) and cov ()"),
        ("spatial_mean", "spatial mean () and cov (3, 3)"),
        ("count", "no reference: KeyError 'count'"),
        ("about", "no reference: KeyError 'about'"),
    ],
)
def test_our_layout_without_an_array_is_reported(reference, tmp_path, saved, missing, told):
    reference.save(tmp_path / "ours.npz")
    arrays = read_npz(tmp_path / "ours.npz")
    del arrays[missing]
    refused(saved(**arrays), told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"about": np.array("{")}, "no reference"),
        ({"about": np.array("[]")}, "no reference"),
        ({"features": np.zeros((50, 5), np.float32)}, "features"),
        ({"features": np.full((50, 6), np.nan, np.float32)}, "not finite"),
        ({"cov": np.full((6, 6), np.nan)}, "not finite"),
    ],
)
def test_our_layout_with_broken_arrays_is_reported(reference, tmp_path, saved, change, told):
    reference.save(tmp_path / "ours.npz")
    refused(saved(**(read_npz(tmp_path / "ours.npz") | change)), told)


def test_a_reference_of_another_network_is_reported(reference, tmp_path):
    reference.save(tmp_path / "ours.npz")
    refused(
        tmp_path / "ours.npz", "another feature network (0123456789ab) than this", network_called("inception", "f" * 64)
    )


def test_inception_statistics_are_refused_for_a_classifier(saved, published):
    refused(saved(**published), "holds statistics of Inception's features, not of the classifier's", CLASSIFIER)


@pytest.mark.parametrize("images", [IMAGES.astype(np.float32), IMAGES[..., 0], IMAGES[:, :3], IMAGES.astype(np.int64)])
def test_images_of_another_shape_or_dtype_are_reported(saved, images):
    refused(saved(arr_0=images), f"has images {images.dtype} {images.shape}; the samples are uint8")


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_reported(saved, count):
    refused(saved(image=IMAGES[:count]), f"at least 2 images; {saved(image=IMAGES[:count])} has {count}")


class Evil:
    """What unpickling would run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["mean", "mu", "arr_0"])
def test_pickles_are_refused_and_never_loaded(saved, tmp_path, name):
    path = saved(**{name: np.array([Evil(tmp_path / "ran")], dtype=object)})
    refused(path, "Object arrays cannot be loaded")
    assert not (tmp_path / "ran").exists()
    with np.load(path, allow_pickle=True) as file:
        file[name]
    assert (tmp_path / "ran").exists()  # it would have


@pytest.mark.parametrize("name", ["mean", "cov", "features", "count", "about"])
def test_a_reference_that_does_not_match_its_hash_is_refused(reference, saved, name):
    path = saved()
    reference.save(path)
    arrays = read_npz(path)
    arrays[name] = np.array(str(arrays[name]).replace("fifty", "sixty")) if name == "about" else arrays[name] + 1
    np.savez(path, **arrays)
    refused(path, "does not match its hash")


@pytest.mark.parametrize("kept", [0, 3, 200, -1, -40])
def test_a_truncated_file_is_reported(saved, published, kept):
    path = saved(**published)
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "cannot read")


def test_a_flipped_byte_is_reported(saved, published):
    path = saved(**published)
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    refused(path, "cannot read")


def test_a_single_array_a_text_and_an_empty_file_are_reported(tmp_path):
    np.save(tmp_path / "one.npy", IMAGES)
    refused(tmp_path / "one.npy", "it is one array, not an .npz")
    (tmp_path / "text.npz").write_text("mean, cov")
    refused(tmp_path / "text.npz", "cannot read")
    refused(tmp_path / "none.npz", "No such file")
    refused(tmp_path, "Is a directory")


def test_a_failed_write_leaves_the_old_file(reference, tmp_path, monkeypatch):
    reference.save(tmp_path / "ours.npz")
    before = (tmp_path / "ours.npz").read_bytes()

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        reference.save(tmp_path / "ours.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["ours.npz"]
    assert (tmp_path / "ours.npz").read_bytes() == before


def test_a_reference_sorted_by_class_gives_the_kernel_distance_of_a_shuffled_one():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 6))
    draw = lambda: np.repeat(centres, 100, axis=0) + 0.05 * rng.normal(size=(4000, 6))
    identity = FeatureNetwork(
        "points",
        "0",
        lambda params, x: {"features": x, "logits": x},
        {},
        judges=False,
    )
    ordered, generated = draw().astype(np.float32), rng.permutation(draw()).astype(np.float32)
    found = make_reference(lambda start, stop: (ordered[start:stop], None), 4000, identity, "sorted").features
    assert abs(kernel_distance(found, generated)[0]) < 0.02 < kernel_distance(ordered, generated)[0]
