"""State dicts from PyTorch's files, safetensors and .npz, without PyTorch, or running what a pickle asks for."""

from cfgjax.weights.state_dict import Weights, read_state_dict, read_weights
from cfgjax.weights.torch_files import LEGACY_MAGIC, LEGACY_PROTOCOL

__all__ = ["LEGACY_MAGIC", "LEGACY_PROTOCOL", "Weights", "read_state_dict", "read_weights"]
