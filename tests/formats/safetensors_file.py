# SPDX-License-Identifier: Apache-2.0
"""Reads and writes safetensors as numpy arrays; bf16 stays as uint16 bits."""
import json
import pathlib
import struct

import numpy as np

NUMPY = {"F32": np.float32, "BF16": np.uint16, "F16": np.float16, "I32": np.int32,
         "U32": np.uint32, "F8_E4M3": np.uint8}


def entries(path):
    """Tensors of one file as (name, dtype, shape, bytes), in its order."""
    raw = pathlib.Path(path).read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    header.pop("__metadata__", None)
    for name, t in header.items():
        a, b = t["data_offsets"]
        yield name, t["dtype"], t["shape"], raw[8 + n + a:8 + n + b]


def read(folder):
    """All tensors of a checkpoint: {name: (dtype, array)}."""
    return {name: (dtype, np.frombuffer(data, NUMPY[dtype]).reshape(shape))
            for path in sorted(pathlib.Path(folder).glob("*.safetensors"))
            for name, dtype, shape, data in entries(path)}


def write(path, tensors, metadata=None):
    """tensors: {name: (dtype, array)}; names are written in sorted order."""
    header, offset = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name in sorted(tensors):
        dtype, array = tensors[name]
        assert array.dtype == NUMPY[dtype], (name, dtype, array.dtype)
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            f.write(np.ascontiguousarray(tensors[name][1]).tobytes())


def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values):
    """Round to nearest, ties to even; finite numbers only."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def floats(tensor):
    dtype, array = tensor
    return bf16_to_f32(array) if dtype == "BF16" else array.astype(np.float32)
