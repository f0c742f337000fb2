"""The weights of a bundled model, read out of its ONNX graph: its initializers, in half precision, under their Hugging Face names.

ONNX Runtime does not give initializers out, and the `onnx` package is larger than all of wanspec. The part of the file's format that leads
to a weight is described below, to the Protocol Buffers library that ONNX Runtime brings along.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wanspec.engines.bundled_pair import BundledModel, read
from wanspec.errors import BackendError

Weights = dict[str, NDArray[np.float16]]

SCHEMA: Final = {
    "Model": {"graph": (7, "optional", "Graph")},
    "Graph": {"initializer": (5, "repeated", "Tensor")},
    "Tensor": {
        "dims": (1, "repeated", "int64"),
        "data_type": (2, "optional", "int32"),
        "name": (8, "optional", "string"),
        "raw_data": (9, "optional", "bytes"),
    },
}
"""Messages of onnx.proto, and each field's number, label and type, as far as they matter here."""
FLOAT16: Final = 10
"""A tensor's type; tensors of others are the tables and constants of the graph."""


def bundled_weights(model: BundledModel) -> Weights:
    """Name to weight. Raises BackendError when the package is damaged."""
    from google.protobuf.message import DecodeError  # with ONNX Runtime

    file = _message_type("Model")()
    try:
        file.ParseFromString(read(f"{model}.onnx"))
        tensors = [tensor for tensor in file.graph.initializer if tensor.data_type == FLOAT16]
        return {tensor.name: np.frombuffer(tensor.raw_data, "<f2").reshape(tensor.dims) for tensor in tensors}
    except (DecodeError, ValueError) as error:
        raise BackendError(f"the bundled file {model}.onnx is damaged ({error}); reinstall wanspec") from error


def _message_type(name: str) -> Any:  # noqa: ANN401  # made by Protocol Buffers
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="onnx_weights.proto", package="onnx", syntax="proto2")
    for message, fields in SCHEMA.items():
        described = file.message_type.add(name=message)
        for field, (number, label, kind) in fields.items():
            added = described.field.add(name=field, number=number, label=f"LABEL_{label.upper()}")
            if kind in SCHEMA:
                added.type, added.type_name = added.TYPE_MESSAGE, f".onnx.{kind}"
            else:
                added.type = getattr(added, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"onnx.{name}"))
