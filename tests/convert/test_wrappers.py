"""State dicts are found inside the dicts and prefixes of trainers, averaged weights first, and shards are joined."""

import json

import numpy as np
import pytest
from weight_files import save_pt, save_safetensors

from cfgjax.base.errors import UsageError
from cfgjax.base.weights import read_state_dict, read_weights
from cfgjax.base.weights.wrappers import unwrap

RAW = {"out.2.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "out.2.bias": np.zeros(2, np.float32)}
AVERAGED = {key: value + 1 for key, value in RAW.items()}


def prefixed(prefix, state_dict=RAW):
    return {prefix + key: value for key, value in state_dict.items()}


def optimizer():
    return {"state": {"0": np.ones(3, np.float32)}, "lr": 1e-4}


@pytest.mark.parametrize(
    ("content", "expected", "path"),
    [
        (RAW, RAW, ()),
        ({"state_dict": RAW, "epoch": 3}, RAW, ("state_dict",)),
        ({"model": RAW, "optimizer": optimizer()}, RAW, ("model",)),
        ({"model_state_dict": RAW, "step": 7, "args": "x"}, RAW, ("model_state_dict",)),
        ({"model": {"state_dict": RAW}}, RAW, ("model", "state_dict")),
        ({"model": prefixed("module.")}, RAW, ("model", "module")),
        (prefixed("module."), RAW, ("module",)),
        (prefixed("module.module."), RAW, ("module", "module")),
        (prefixed("_orig_mod.module."), RAW, ("_orig_mod", "module")),
        ({"ema": AVERAGED}, AVERAGED, ("ema",)),
        ({"ema": prefixed("module.", AVERAGED)}, AVERAGED, ("ema", "module")),
        ({"ema": {"0.9999": AVERAGED}}, AVERAGED, ("ema", "0.9999")),
    ],
)
def test_the_state_dict_inside_is_found(content, expected, path):
    found, taken, passed_over = unwrap(content)
    assert (taken, passed_over) == (path, ())
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("content", "path", "others"),
    [
        ({"model": RAW, "ema": AVERAGED}, ("ema",), ("model",)),
        ({"ema": AVERAGED, "model": RAW}, ("ema",), ("model",)),
        ({"state_dict": RAW, "ema_model": AVERAGED}, ("ema_model",), ("state_dict",)),
        ({"model_state_dict": RAW, "ema_state_dict": AVERAGED}, ("ema_state_dict",), ("model_state_dict",)),
        ({"state_dict": RAW, "model_ema": prefixed("module.", AVERAGED)}, ("model_ema", "module"), ("state_dict",)),
        (prefixed("ema_model.", AVERAGED) | prefixed("online_model."), ("ema_model",), ("online_model",)),
        (
            {"ema": prefixed("ema_model.", AVERAGED) | prefixed("online_model."), "model": RAW},
            ("ema", "ema_model"),
            ("model", "online_model"),
        ),
        ({"model": {"ema": AVERAGED, "net": RAW}}, ("model", "ema"), ("net",)),
    ],
)
def test_averaged_weights_are_preferred_and_the_others_named(content, path, others):
    found, taken, passed_over = unwrap(content)
    assert (taken, passed_over) == (path, others)
    assert all(np.array_equal(found[key], value) for key, value in AVERAGED.items())


def test_an_average_without_arrays_is_passed_over():
    assert unwrap({"ema": {"decay": 0.999}, "model": RAW})[1] == ("model",)


def test_an_unknown_prefix_is_one_if_several_modules_follow_it():
    network = RAW | {"time_embed.0.bias": np.ones(2, np.float32)}
    for prefix in ("denoise_fn.", "diffusion.", "model.diffusion_model."):
        found, path, _ = unwrap(prefixed(prefix, network))
        assert found.keys() == network.keys() and path == tuple(prefix.split(".")[:-1])
    assert unwrap(prefixed("fc.", {"weight": np.ones(2), "bias": np.ones(2)}))[1] == ()


def test_a_prefix_that_some_arrays_lack_is_part_of_their_names():
    mixed = prefixed("module.") | RAW
    assert unwrap(mixed) == (mixed, (), ())


def test_counters_next_to_prefixes_are_left_out():
    found, path, _ = unwrap(prefixed("ema_model.", AVERAGED) | {"step": np.zeros((), np.int64), "initted": True})
    assert (path, found.keys()) == (("ema_model",), RAW.keys())


def test_a_dict_that_contains_itself_ends():
    content: dict = {"step": 1}
    content["model"] = content
    assert unwrap(content)[1] == ()


def test_a_file_says_what_was_taken(tmp_path):
    path = save_pt(tmp_path / "x.pt", {"step": 5, "model": prefixed("module."), "ema": AVERAGED, "opt": optimizer()})
    weights = read_weights(path)
    assert weights.choice == "took ema, not model"
    assert all(np.array_equal(weights.arrays[key], value) for key, value in AVERAGED.items())
    assert read_weights(save_pt(tmp_path / "y.pt", prefixed("module."))).choice == ""


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_prefixes_are_found_in_files_of_every_kind(ending, tmp_path):
    path = tmp_path / f"x.{ending}"
    np.savez(path, **prefixed("module.")) if ending == "npz" else save_safetensors(path, prefixed("module."))
    assert read_state_dict(path).keys() == RAW.keys()


# Shards

ONE, TWO = "w-00001-of-00002.safetensors", "w-00002-of-00002.safetensors"
BOTH = dict(zip(RAW, (ONE, TWO), strict=True))


@pytest.fixture
def index(tmp_path):
    """Two shards of RAW, and a function that writes their index and returns its path."""
    for key, name in BOTH.items():
        save_safetensors(tmp_path / name, {key: RAW[key]})

    def write(weight_map):
        path = tmp_path / "w.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map}))
        return path

    return write


def test_shards_are_joined(index):
    found = read_state_dict(index(BOTH))
    assert found.keys() == RAW.keys() and all(np.array_equal(found[key], RAW[key]) for key in RAW)


def test_a_missing_shard_is_named(index, tmp_path):
    (tmp_path / "w-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match=r"of which w-00002-of-00002\.safetensors are missing\Z"):
        read_state_dict(index(BOTH))


def test_a_shard_that_the_index_does_not_name_is_an_error(index, tmp_path):
    save_safetensors(tmp_path / "w-00003-of-00003.safetensors", RAW)
    with pytest.raises(UsageError, match=r"does not name: w-00003-of-00003\.safetensors\Z"):
        read_state_dict(index(BOTH))


def test_shards_of_another_family_do_not_matter(index, tmp_path):
    save_safetensors(tmp_path / "w.fp16-00001-of-00003.safetensors", RAW)
    assert read_state_dict(index(BOTH)).keys() == RAW.keys()


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        ({"out.2.weight": ONE, "out.2.bias": ONE}, r"does not name: w-00002"),
        ({"out.2.weight": TWO, "out.2.bias": ONE}, r"places out\.2\.bias in w-00001"),
        ({"out.2.bias": TWO, "more": ONE}, r"places more in w-00001"),
        ({"x": "../" + ONE}, "is not the name of a file"),
        ({"x": "/etc/passwd"}, "is not the name of a file"),
        ({"x": ".."}, "is not the name of a file"),
        ({"x": ""}, "is not the name of a file"),
        ({"x": 3}, "is not the name of a file"),
        ([ONE], "'weight_map' is a list"),
        ({}, "its weight_map is empty"),
    ],
)
def test_an_index_that_does_not_fit_is_reported_in_one_line(index, weight_map, expected):
    with pytest.raises(UsageError, match=rf"\A[^\n]*{expected}[^\n]*\Z"):
        read_state_dict(index(weight_map))


def test_a_missing_index_is_reported(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*none\.index\.json: No such file"):
        read_state_dict(tmp_path / "none.index.json")
