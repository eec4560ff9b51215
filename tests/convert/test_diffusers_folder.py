"""Weights in a folder of diffusers are found in any variant, and in a pipeline."""

import pytest

from cfgjax.base.errors import UsageError
from cfgjax.convert.diffusers_folder import network_folder, weights_file

NAME = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    "names",
    [  # the preferred first
        [".safetensors", ".safetensors.index.json", ".bin", ".fp16.safetensors", ".fp16.bin"],
        [".safetensors.index.json", ".bin", ".bin.index.json"],
        [".bin", ".fp16.safetensors"],
        [".bf16.safetensors", ".fp16.safetensors", ".non_ema.safetensors"],
        [".fp16.safetensors", ".fp16.safetensors.index.json", ".fp16.bin"],
        [".safetensors.index.fp16.json", ".fp16.bin"],
        [".fp16.safetensors.index.json"],
        [".bin.index.json"],
    ],
    ids=" ".join,
)
def test_the_best_of_the_weights_is_taken(names, tmp_path):
    for name in ["config.json", f"{NAME}-00001-of-00002.safetensors", *(NAME + name for name in names)]:
        (tmp_path / name).touch()
    for name in names:
        assert weights_file(tmp_path).name == NAME + name
        (tmp_path / (NAME + name)).unlink()
    with pytest.raises(UsageError, match=rf"has neither .* and {NAME}-00001-of-00002.safetensors without {NAME}"):
        weights_file(tmp_path)


def test_a_network_a_pipeline_and_its_averages_are_found(tmp_path):
    with pytest.raises(UsageError, match="is not a folder of diffusers: there is no .*config.json"):
        network_folder(tmp_path)
    (tmp_path / "model_index.json").touch()
    with pytest.raises(UsageError, match="is a pipeline of diffusers without unet/config.json"):
        network_folder(tmp_path)
    for name in ("unet", "unet_ema", "."):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").touch()
        assert network_folder(tmp_path) == tmp_path / name
