"""Reads state dicts from PyTorch's files, safetensors and .npz, without PyTorch and without running pickled code."""

from cfgjax.base.weights.state_dict import Weights, read_state_dict, read_weights
from cfgjax.base.weights.torch_files import LEGACY_MAGIC, LEGACY_PROTOCOL

__all__ = ["LEGACY_MAGIC", "LEGACY_PROTOCOL", "Weights", "read_state_dict", "read_weights"]
