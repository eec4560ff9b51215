"""Files of weights as PyTorch and safetensors write them, by hand, and the golden files."""

import json
import math
import pathlib
import pickle
import struct
import zipfile

import numpy as np

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
SMALL_ADM = dict(  # arguments of guided-diffusion's networks, small
    in_channels=3,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=[1],
    channel_mult=[1],
    num_head_channels=16,
    use_scale_shift_norm=True,
    resblock_updown=True,
)


def load(path):
    """(constructor arguments, state dict, {"in/…", "out/…"}) of a golden file."""
    with np.load(path) as file:
        arrays = dict(file)
    config = json.loads(str(arrays.pop("config")))
    state_dict = {key.removeprefix("param/"): arrays.pop(key) for key in list(arrays) if key.startswith("param/")}
    return config, state_dict, arrays


def piece(value):
    """The opcodes that put a plain value on a pickle's stack."""
    return pickle.dumps(value, 2)[2:-1]


def pickled_tensor(key, shape):
    """The opcodes of a contiguous float32 tensor."""
    strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    storage = b"(" + piece("storage") + b"ctorch\nFloatStorage\n" + piece(key) + piece("cpu")
    view = piece(0) + piece(tuple(shape)) + piece(strides) + piece(False) + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + piece(math.prod(shape)) + b"tQ" + view + b"tR"


def save_pt(path, content):
    """A state dict of float32, or such dicts and plain values in dicts, in the zip format of torch.save."""
    storages: list = []

    def pickled(value):
        if isinstance(value, dict):
            items = b"".join(piece(name) + pickled(inner) + b"s" for name, inner in value.items())
            return b"ccollections\nOrderedDict\n)R" + items
        if not isinstance(value, np.ndarray):
            return piece(value)
        storages.append(np.ascontiguousarray(value, "<f4").tobytes())
        return pickled_tensor(str(len(storages) - 1), value.shape)

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled(content) + b".")
        for i, data in enumerate(storages):
            archive.writestr(f"archive/data/{i}", data)
    return path


def safetensors(header, data=b""):
    """The bytes of a safetensors file with this header."""
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text)) + text + data


def save_safetensors(path, arrays):
    """A state dict of float32 as safetensors."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        content = np.ascontiguousarray(array, "<f4").tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": "F32", "shape": list(np.shape(array)), "data_offsets": offsets}
        data += content
    path.write_bytes(safetensors(header, data))
    return path
