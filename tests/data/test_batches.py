import numpy as np
import pytest
from tiny import open_source

from cfgjax.data.batches import batch_at, crop, to_float, to_uint8
from cfgjax.data.sources.registry import Dataset


@pytest.fixture
def numbered():
    """Eleven 1×2 images that carry their index on the left, and its negative on the right."""
    value = np.arange(11, dtype=np.float32) / 11
    image = np.stack([value, -value], axis=1).reshape(11, 1, 2, 1)
    return Dataset(image, np.arange(11, dtype=np.int32))


def test_a_batch_is_a_function_of_seed_and_step(numbered):
    again, other_step, other_seed = (
        batch_at(numbered, seed, step, 4)["label"] for seed, step in [(0, 5), (0, 6), (1, 5)]
    )
    assert np.array_equal(batch_at(numbered, 0, 5, 4)["label"], again)
    assert not np.array_equal(again, other_step)
    assert not np.array_equal(again, other_seed)


def test_every_epoch_shows_every_example_once_in_an_order_of_its_own(numbered):
    stream = np.concatenate([batch_at(numbered, 0, step, 4)["label"] for step in range(11)])
    epochs = stream.reshape(4, 11)
    assert all(np.array_equal(np.sort(epoch), np.arange(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [4, 5, 6, 7], [1, 6], [3]])
def test_rows_of_a_batch_do_not_depend_on_the_other_rows(numbered, rows):
    flipped = Dataset(numbered.image, numbered.label, random_flip=True)
    whole, part = batch_at(flipped, 3, 7, 8), batch_at(flipped, 3, 7, 8, np.array(rows))
    for name in whole:
        assert np.array_equal(whole[name][rows], part[name])


def test_flips_mirror_about_half_of_the_images_left_to_right(numbered):
    flipped = Dataset(numbered.image, numbered.label, random_flip=True)
    batch = batch_at(flipped, 0, 0, 2000)
    expected = numbered.image[batch["label"]]
    mirrored = (batch["image"] != expected).any(axis=(1, 2, 3))
    assert np.array_equal(batch["image"][mirrored], expected[mirrored][:, :, ::-1])
    assert 0.40 < mirrored.mean() < 0.51  # image 0 is its own mirror image


def test_uint8_goes_to_unit_range_and_back_exactly():
    pixels = np.arange(256, dtype=np.uint8)
    assert to_float(pixels).min() == -1
    assert to_float(pixels).max() == 1
    assert np.array_equal(to_uint8(to_float(pixels)), pixels)
    assert np.array_equal(to_uint8([-3.0, 3.0]), [0, 255])


def test_digit_splits_are_disjoint_complete_and_hold_every_class():
    digits = {"source": "digits", "num_classes": 10, "image_shape": (8, 8, 1)}
    train, holdout, everything = (open_source(split=split, **digits) for split in ("train", "holdout", "all"))
    assert len(train) + len(holdout) == len(everything) == 1797
    assert set(train.label) == set(holdout.label) == set(range(10))
    assert everything.image.min() == -1
    assert everything.image.max() == 1


def images(n=8, **options):
    image = np.random.default_rng(0).uniform(-1, 1, (n, 8, 8, 2)).astype(np.float32)
    return Dataset(image, np.zeros(n, np.int32), **options)


def test_small_images_are_means_over_squares_of_the_same_image():
    batch = batch_at(images(low_res_size=4, random_flip=True), 0, 3, 8)
    expected = batch["image"].reshape(8, 4, 2, 4, 2, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(batch["low_res"], expected, atol=1e-6)


def test_crops_depend_only_on_seed_step_and_position_and_stay_within_the_image():
    data = images(random_crop=0.5)
    whole = batch_at(data, 0, 3, 8)["image"]
    np.testing.assert_array_equal(whole, batch_at(data, 0, 3, 8)["image"])
    halves = [batch_at(data, 0, 3, 8, rows)["image"] for rows in np.split(np.arange(8), 2)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert np.abs(whole - batch_at(images(), 0, 3, 8)["image"]).max() > 0.1
    assert np.abs(whole).max() <= 1
    assert whole.shape == (8, 8, 8, 2) and whole.dtype == np.float32


def test_a_crop_of_full_size_is_the_image_and_a_linear_image_stays_linear():
    ramp = np.repeat(np.linspace(-1, 1, 8, dtype=np.float32)[None, :, None], 8, axis=0)
    np.testing.assert_allclose(crop(1.0, ramp, np.array([0.3, 0.9, 0.1])), ramp, atol=1e-6)
    part = crop(0.5, ramp, np.array([0.0, 0.5, 0.5]))[:, 1:-1]
    steps = np.diff(part, axis=1)
    np.testing.assert_allclose(steps, steps.mean(), atol=1e-6)
    assert 0.4 < steps.mean() / (2 / 7) < 0.6
