"""The presets are the published networks."""

import jax
import pytest

from cfgjax.convert.guided_diffusion import MAKERS
from cfgjax.convert.layout import shapes_of
from cfgjax.convert.presets import PRESETS

# From the published papers and files
COUNTS = {
    "imagenet64": 295_904_454,
    "imagenet128": 421_529_606,
    "imagenet256": 553_838_086,
    "imagenet256_uncond": 552_814_086,
    "imagenet512": 558_997_638,
    "lsun_bedroom": 552_814_086,
    "upsampler_64_256": 311_795_910,
    "upsampler_128_512": 308_835_270,
    "classifier64": 65_438_568,
    "classifier128": 42_568_040,
    "classifier256": 54_096_360,
    "classifier512": 54_448_360,
}


def make(name):
    return MAKERS[PRESETS[name].kind](PRESETS[name].arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published(name):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(*make(name)))) == COUNTS[name]


def test_the_lsun_models_differ_in_dropout_alone():
    bedroom, cat, horse, plain = (make(f"lsun_{which}")[0] for which in ("bedroom", "cat", "horse", "horse_nodropout"))
    assert bedroom == cat == horse == plain.clone(dropout=0.1) and plain.dropout == 0


def test_heads_and_their_order_which_no_shape_tells_are_as_published():
    heads = {name: (net.num_heads, net.head_channels) for name in PRESETS for net in [make(name)[0]]}
    assert {name for name, value in heads.items() if value == (4, None)} == {"imagenet128", "upsampler_64_256"}
    assert {value for name, value in heads.items() if value != (4, None)} == {(None, 64)}
    assert [name for name in PRESETS if not make(name)[0].legacy_attention_order] == ["imagenet64"]


def test_what_no_network_tells_is_as_published():
    assert {name for name, preset in PRESETS.items() if preset.betas == "cosine"} == {"imagenet64", "classifier64"}
    sizes = {name: preset.low_res_size for name, preset in PRESETS.items() if preset.low_res_size}
    assert sizes == {"upsampler_64_256": 64, "upsampler_128_512": 128}
    assert {preset.num_classes for name, preset in PRESETS.items() if "lsun" in name} == {1}
    assert {preset.num_classes for name, preset in PRESETS.items() if "lsun" not in name} == {1000}
