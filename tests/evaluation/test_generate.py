import dataclasses
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits_config, mixture_config, of_mixture, predictor, settings

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz, writing
from cfgjax.data.sources.registry import toy_mixture
from cfgjax.distributed.sharding import make_mesh, place_global
from cfgjax.evaluation.features.hashed import write_arrays
from cfgjax.evaluation.frontier.generate import LABELS_OF_POLICY, SampleStore, draw_samples
from cfgjax.models.model import Model
from cfgjax.models.network import check_network, make_network
from cfgjax.runs.sample_options import SampleOptions

CONFIG = mixture_config()
MIXTURE = toy_mixture(CONFIG.data.means, CONFIG.data.stds, CONFIG.data.weights)
OPTIONS = SampleOptions(guidance=1.5, num_steps=3, seed=7, label_policy="random")


EXACT = of_mixture(MIXTURE)


def model_of(bind_params=EXACT, devices=1, config=CONFIG):
    mesh = make_mesh(devices=jax.devices()[:devices])
    return Model(config, {}, mesh=mesh, bind_params=bind_params)


def all_samples(model, options, num_samples, batch_size):
    """(index, labels, samples) of all batches, joined as they come."""
    parts = draw_samples(model, options, np.arange(num_samples), batch_size)
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture(scope="module")
def hundred(model):
    return all_samples(model, OPTIONS, 100, 100)


@pytest.mark.slow
def test_a_thousand_samples_in_batches_of_96_have_every_index_once():
    index, labels, samples = all_samples(model_of(), OPTIONS, 1000, 96)
    assert np.array_equal(index, np.arange(1000))
    assert (labels.shape, samples.shape, samples.dtype) == ((1000,), (1000, 2), np.float32)
    assert len(np.unique(samples, axis=0)) == 1000


@pytest.mark.parametrize("policy", LABELS_OF_POLICY)
def test_labels_depend_only_on_seed_and_index(policy):
    make = LABELS_OF_POLICY[policy]
    labels = make(np.arange(1000), 10, 3)
    assert np.array_equal(make(np.arange(300), 10, 3), labels[:300])
    order = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(make(order, 10, 3), labels[order])
    assert set(labels) == set(range(10))


def test_balanced_labels_have_equal_class_counts_for_any_seed():
    for seed in (0, 2**31):
        assert (np.bincount(LABELS_OF_POLICY["balanced"](np.arange(1000), 10, seed)) == 100).all()


def test_random_labels_are_uniform_and_differ_between_seeds():
    counts = np.bincount(LABELS_OF_POLICY["random"](np.arange(6000), 10, 0), minlength=10)
    assert np.square(counts - 600).sum() / 600 < 27.9  # χ² of 9 degrees of freedom, 0.1 %
    a, b = (LABELS_OF_POLICY["random"](np.arange(6000), 10, seed) for seed in (0, 1))
    assert 0.05 < (a == b).mean() < 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "batch_size"), [(1, 7), (2, 15), (8, 8)])
def test_a_sample_depends_neither_on_the_batch_nor_on_the_devices(hundred, devices, batch_size):
    index, labels, samples = all_samples(model_of(devices=devices), OPTIONS, 100, batch_size)
    assert np.array_equal(index, hundred[0])
    assert np.array_equal(labels, hundred[1])
    assert np.abs(samples - hundred[2]).max() < 1e-5


@pytest.mark.optimised  # compares to the last bit
@pytest.mark.slow
def test_the_noise_equals_that_of_one_device_bit_for_bit():
    options = dataclasses.replace(OPTIONS, sampler="ddim", num_steps=2)
    constant = lambda params: predictor(lambda z, *_: 0 * z)
    noise = lambda devices, size: all_samples(model_of(constant, devices), options, 50, size)[2]
    whole = noise(1, 50)
    for devices, size in [(2, 10), (8, 3)]:
        assert np.array_equal(noise(devices, size), whole)


@pytest.mark.slow
def test_samples_are_equal_bit_for_bit_on_one_two_and_eight_devices():
    config = digits_config()
    shapes = check_network(make_network(settings(config)), config.data.image_shape)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: 0.3 * rng.normal(size=p.shape).astype(np.float32), shapes)
    models = [Model(config, params, mesh=make_mesh(devices=jax.devices()[:n])) for n in (1, 2, 8)]
    for model in models:
        model.put(params)
    options = dataclasses.replace(OPTIONS, label_policy="balanced")
    one, *others = [all_samples(model, options, 11, 3)[2] for model in models]
    assert one.std() > 10
    assert all(np.array_equal(one, other) for other in others)


def test_an_index_has_the_same_sample_whatever_else_is_requested(model, hundred):
    wanted = np.array([3, 4, 60, 99])
    ((index, labels, samples),) = draw_samples(model, OPTIONS, wanted, 100)
    assert np.array_equal(index, wanted)
    assert np.array_equal(labels, hundred[1][wanted])
    assert np.array_equal(samples, hundred[2][wanted])


def test_an_empty_request_draws_nothing(model):
    assert list(draw_samples(model, OPTIONS, np.arange(0), 16)) == []


def test_samples_of_images_are_uint8():
    config = digits_config()
    options = dataclasses.replace(OPTIONS, num_steps=2)
    images = all_samples(model_of(lambda params: predictor(lambda z, *_: 0.5 * z), 8, config), options, 20, 16)[2]
    assert (images.shape, images.dtype) == ((20, 8, 8, 1), np.uint8)
    assert images.std() > 5


def test_a_non_finite_sample_is_reported_with_its_index_and_weight():
    model = model_of(lambda params: predictor(lambda z, logsnr, label: jnp.where(label[:, None] == 2, jnp.nan, z)))
    options = dataclasses.replace(OPTIONS, label_policy="balanced")
    with pytest.raises(ArithmeticError, match=r"^sample 8 at w = 1.5 has a value that is not finite; its label is 2$"):
        list(draw_samples(model, options, np.arange(6, 40), 16))


class Counting(Model):
    """A model of `devices` that draws nothing but counts the rows of each call."""

    num_classes, is_image = 10, False

    def __init__(self, devices):
        self.mesh, self.rows = make_mesh(devices=jax.devices()[:devices]), []

    def sampler(self, **options):
        def draw(index, labels, weights):
            self.rows.append(len(index))
            return place_global(self.mesh, np.zeros((len(index), 1), np.float32))

        return draw


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_samples", "batch_size", "devices", "rows"),
    [
        (200, 250, 2, [200]),
        (200, 250, 8, [200]),
        (200, 25, 8, [200]),
        (201, 250, 2, [202]),
        (3, 250, 8, [8]),
        (600, 250, 2, [500, 500]),
        (100, 16, 1, [16] * 7),
    ],
)
def test_no_more_rows_are_drawn_than_the_samples_need(num_samples, batch_size, devices, rows):
    model = Counting(devices)
    index = np.concatenate([part[0] for part in draw_samples(model, OPTIONS, np.arange(num_samples), batch_size)])
    assert model.rows == rows
    assert np.array_equal(index, np.arange(num_samples))


def test_a_resumed_evaluation_draws_in_calls_of_the_same_size():
    model = Counting(2)
    list(draw_samples(model, OPTIONS, np.arange(90, 100), 250, num_samples=100))
    assert model.rows == [100]


def shard(index):
    """Labels and images that tell their index."""
    return index, index % 7, np.stack([index, index + 0.5], axis=1).astype(np.float32)


def test_samples_are_read_back_in_order_whatever_the_order_of_the_shards(tmp_path):
    store = SampleStore(tmp_path, {"w": 1.0})
    for span in [(40, 60), (0, 15), (60, 61), (15, 40)]:
        store.write(*shard(np.arange(*span)))
    for start, stop in [(0, 61), (10, 45), (60, 61)]:
        _, labels, images = shard(np.arange(start, stop))
        for found in (store, SampleStore(tmp_path, {"w": 1.0})):
            samples, read = found.read(start, stop)
            assert np.array_equal(samples, images) and samples.dtype == np.float32
            assert np.array_equal(read, labels)


def test_a_store_lists_its_missing_samples(tmp_path):
    store = SampleStore(tmp_path, {})
    assert np.array_equal(store.missing(4), [0, 1, 2, 3])
    store.write(*shard(np.arange(0)))
    store.write(*shard(np.array([1, 2, 6])))
    assert np.array_equal(store.missing(4), [0, 3])
    assert np.array_equal(SampleStore(tmp_path, {}).missing(8), [0, 3, 4, 5, 7])


def test_reading_missing_samples_is_an_error(tmp_path):
    store = SampleStore(tmp_path, {})
    with pytest.raises(UsageError, match="lacks samples of 0 … 4; evaluate again"):
        store.read(0, 5)
    store.write(*shard(np.arange(0, 10)))
    with pytest.raises(UsageError, match="lacks samples of 5 … 14; evaluate again"):
        store.read(5, 15)
    with pytest.raises(UsageError, match="lacks samples of 20 … 24; evaluate again"):
        store.read(20, 25)


@pytest.mark.parametrize("kept", [0, 10, 400, -1])
def test_a_damaged_shard_is_reported_and_its_samples_are_missing(tmp_path, caplog, kept):
    store = SampleStore(tmp_path, {})
    for start in (0, 10):
        store.write(*shard(np.arange(start, start + 10)))
    path = sorted(store.folder.glob("*.npz"))[1]
    path.write_bytes(path.read_bytes()[:kept])
    with caplog.at_level(logging.WARNING, "cfgjax"):
        found = SampleStore(tmp_path, {})
    assert f"cannot read {path}" in caplog.text
    assert path.with_suffix(".damaged").exists()
    assert np.array_equal(found.missing(20), np.arange(10, 20))
    found.write(*shard(np.arange(10, 20)))
    assert not len(SampleStore(tmp_path, {}).missing(20))


def test_shards_of_other_arrays_are_reported(tmp_path, caplog):
    store, index = SampleStore(tmp_path, {}), np.arange(3)
    for i, arrays in enumerate([{"label": np.arange(2), "image": np.zeros((3, 2))}, {}]):
        write_arrays(store.folder / f"{i:08}-{i + 2:08}.npz", {"index": index, **arrays}, store.digest)
    np.savez(store.folder / "00000002-00000004.npz", index=index, label=index, image=np.array([{}, {}, {}]))
    store.rescan()
    assert caplog.text.count("cannot read") == 3
    assert len(store.missing(3)) == 3


def test_a_shard_that_was_altered_counts_as_missing(tmp_path, caplog):
    store, other = SampleStore(tmp_path, {}), SampleStore(tmp_path, {"w": 2.0})
    other.write(*shard(np.arange(12, 15)))
    for start in (0, 3, 6, 9):
        store.write(*shard(np.arange(start, start + 3)))
    paths = sorted(store.folder.glob("*.npz"))
    for path, name in zip(paths, ("index", "label", "image"), strict=False):
        arrays = read_npz(path)
        arrays[name] = arrays[name] + 1
        np.savez(path, **arrays)
    shutil.copy(other.folder / "00000012-00000014.npz", store.folder)
    found = SampleStore(tmp_path, {})
    assert caplog.text.count("does not match its hash") == 4
    assert np.array_equal(found.missing(15), [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14])


def test_shards_of_older_versions_are_reported_in_one_line_and_count_as_missing(tmp_path, caplog):
    store = SampleStore(tmp_path, {})
    for start in (0, 3, 6):
        store.write(*shard(np.arange(start, start + 3)))
    for path in sorted(store.folder.glob("*.npz"))[:2]:
        np.savez(path, **{name: array for name, array in read_npz(path).items() if name != "sha256"})
    assert np.array_equal(SampleStore(tmp_path, {}).missing(9), np.arange(6))
    (record,) = caplog.records
    assert "2 shards" in record.getMessage() and "no hash" in record.getMessage()


def test_an_unfinished_shard_does_not_count(tmp_path, caplog):
    store = SampleStore(tmp_path, {})
    with writing(store.folder / "00000000-00000002.npz") as unfinished:
        unfinished.write_bytes(b"PK")
        assert len(SampleStore(tmp_path, {}).missing(3)) == 3
        assert unfinished.exists()
        write_arrays(unfinished, dict(zip(("index", "label", "image"), shard(np.arange(3)), strict=True)), store.digest)
    assert not len(SampleStore(tmp_path, {}).missing(3))
    assert not caplog.text


def test_different_identities_have_different_folders(tmp_path):
    stores = [
        SampleStore(tmp_path, identity) for identity in ({"w": 1.0, "seed": 0}, {"seed": 0, "w": 1.0}, {"w": 2.0})
    ]
    assert stores[0].folder == stores[1].folder != stores[2].folder
    stores[0].write(*shard(np.arange(5)))
    assert not len(SampleStore(tmp_path, {"w": 1.0, "seed": 0}).missing(5))
    assert len(SampleStore(tmp_path, {"w": 2.0}).missing(5)) == 5


def test_removed_shards_are_missing(tmp_path):
    store = SampleStore(tmp_path, {})
    store.write(*shard(np.arange(5)))
    store.remove()
    assert len(store.missing(5)) == len(SampleStore(tmp_path, {}).missing(5)) == 5


def test_an_evaluation_stopped_between_batches_resumes_to_the_same_result(tmp_path, model):
    def fill(folder, batches):
        store = SampleStore(folder, {})
        parts = draw_samples(model, OPTIONS, store.missing(200), 48)
        for part, _ in zip(parts, range(batches), strict=False):
            store.write(*part)
        return {path.name: read_npz(path) for path in store.folder.glob("*.npz")}

    straight = fill(tmp_path / "straight", 9)
    assert len(fill(tmp_path / "stopped", 2)) == 2
    assert len(straight) == 5
    gone_on = fill(tmp_path / "stopped", 9)
    assert gone_on.keys() == straight.keys()
    for name, arrays in straight.items():
        assert all(np.array_equal(gone_on[name][key], array) for key, array in arrays.items())
