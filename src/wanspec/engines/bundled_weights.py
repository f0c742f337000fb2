"""The weights of a bundled model, read out of its ONNX graph: its initializers, in half precision, under their Hugging Face names.

ONNX Runtime does not give initializers out, and the `onnx` package is larger than all of wanspec. What is read here of the file's format
(Protocol Buffers) is what `models/graph.py` writes: messages of fields, a field being a number, a kind and a value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wanspec.engines.bundled_pair import BundledModel, read
from wanspec.errors import BackendError

Weights = dict[str, NDArray[np.float16]]

_VARINT, _BYTES = 0, 2
"""The kinds of a field that occur on the way to a weight; others are refused."""
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW_DATA = 1, 2, 8, 9
_FLOAT16 = 10
"""Numbers of onnx.proto."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: of kind _VARINT a number, of kind _BYTES bytes."""

    number: int
    varint: int
    data: memoryview


def bundled_weights(model: BundledModel) -> Weights:
    """Name to weight. Raises BackendError when the package is damaged."""
    try:
        return dict(_half_tensors(memoryview(read(f"{model}.onnx"))))
    except (IndexError, ValueError) as error:
        raise BackendError(f"the bundled file {model}.onnx is damaged ({error}); reinstall wanspec") from error


def _half_tensors(file: memoryview) -> Iterator[tuple[str, NDArray[np.float16]]]:
    for graph in _fields(file):
        if graph.number == _MODEL_GRAPH:
            for tensor in _fields(graph.data):
                if tensor.number == _GRAPH_INITIALIZER:
                    yield from _half_tensor(tensor.data)


def _half_tensor(message: memoryview) -> Iterator[tuple[str, NDArray[np.float16]]]:
    """The tensor in `message`, if it has half precision: the others are the tables and constants of the graph."""
    shape: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    for field in _fields(message):
        if field.number == _TENSOR_DIMS:
            shape += _varints(field.data) if len(field.data) else [field.varint]
        elif field.number == _TENSOR_TYPE:
            kind = field.varint
        elif field.number == _TENSOR_NAME:
            name = bytes(field.data).decode()
        elif field.number == _TENSOR_RAW_DATA:
            raw = field.data
    if kind == _FLOAT16:
        yield name, np.frombuffer(raw, "<f2").reshape(shape)


def _fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message, in order. Raises ValueError or IndexError where it is none."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            yield Field(key >> 3, value, message[:0])
        elif kind == _BYTES and at + value <= len(message):
            yield Field(key >> 3, 0, message[at : at + value])
            at += value
        else:
            raise ValueError(f"a field of kind {kind} is cut off or unknown")


def _varints(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:  # noqa: PLR2004  # the eighth bit says that another byte follows
            return value, at
