"""Writes a Llama as an ONNX graph: the same computation as `llama.Llama.extend`, one operator at a time.

Weights are stored in half precision under their Hugging Face names, each followed by a cast to float32; the runtime folds the casts when it
loads the model, so a step costs what it would with float32 weights. Standard operators only (opset 23).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from llama import Llama, LlamaShape

OPSET = 23  # the first with RMSNormalization and RotaryEmbedding
IR_VERSION = 10


class Graph:
    """Nodes and initializers in the order of their making; every method returns the name of its result."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.weights = weights

    def add(self, operator: str, *inputs: str, out: str = "", **attributes: object) -> str:
        name = out or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: object, dtype: type[np.generic] = np.int64) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, dtype=dtype, order="C"), name)
        return name

    def weight(self, name: str) -> str:
        """A parameter in float32, kept as float16."""
        if name not in self.initializers:
            self.constant(name, self.weights[name], np.float16)
            self.add("Cast", name, out=f"{name}.float32", to=TensorProto.FLOAT)
        return f"{name}.float32"

    def linear(self, x: str, name: str) -> str:
        return self.add("Gemm", x, self.weight(f"{name}.weight"), transB=1)

    def norm(self, x: str, name: str) -> str:
        return self.add("RMSNormalization", x, self.weight(f"{name}.weight"), axis=-1, epsilon=1e-5)


def build(model: Llama) -> onnx.ModelProto:
    """The model that scores `ids` [q] at `positions` [q] under an additive `mask` [q, past + q], given a cache.

    `past_keys` and `past_values` are [past, layers, kv_heads, head_dim]; so are `new_keys` and `new_values`, with q for past.
    """
    shape = model.shape
    graph = Graph({name: weight.float().numpy() for name, weight in model.state_dict().items()})
    half = shape.head_dim // 2  # the model's tables hold every angle twice
    graph.constant("rope_cos", model.cos[:, :half].numpy(), np.float32)
    graph.constant("rope_sin", model.sin[:, :half].numpy(), np.float32)
    graph.add("Unsqueeze", "positions", graph.constant("axis_0", [0]), out="batched_positions")
    x = graph.add("Gather", graph.weight("model.embed_tokens.weight"), "ids")
    keys, values = [], []
    for index in range(shape.layers):
        layer = f"model.layers.{index}"
        attended, key, value = attention(graph, shape, graph.norm(x, f"{layer}.input_layernorm"), index)
        x = graph.add("Add", x, attended)
        x = graph.add("Add", x, feed_forward(graph, graph.norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp"))
        keys.append(key)
        values.append(value)
    graph.add("Gemm", graph.norm(x, "model.norm"), graph.weight("model.embed_tokens.weight"), transB=1, out="logits")
    for name, parts in (("new_keys", keys), ("new_values", values)):
        graph.add("Concat", *(graph.add("Unsqueeze", part, "axis_1") for part in parts), axis=1, out=name)
    return declared(graph, shape)


def attention(graph: Graph, shape: LlamaShape, x: str, index: int) -> tuple[str, str, str]:
    """Output [q, hidden] of a layer's attention over the cache and `x` itself, and its new keys and values [q, kv_heads, head_dim]."""
    layer, head_dim, kv_heads = f"model.layers.{index}.self_attn", shape.head_dim, shape.kv_heads
    head_shape = graph.constant("kv_head_shape", [-1, kv_heads, head_dim])
    key = graph.add("Reshape", rotary(graph, graph.linear(x, f"{layer}.k_proj"), kv_heads), head_shape)
    value = graph.add("Reshape", graph.linear(x, f"{layer}.v_proj"), head_shape)
    keys = with_past(graph, "past_keys", key, index)
    values = with_past(graph, "past_values", value, index)

    query = rotary(graph, graph.linear(x, f"{layer}.q_proj"), shape.heads)
    grouped = graph.constant("query_shape", [-1, kv_heads, shape.heads // kv_heads, head_dim])
    query = graph.add("Transpose", graph.add("Reshape", query, grouped), perm=[1, 2, 0, 3])
    query = graph.add("Mul", query, graph.constant("scale", head_dim**-0.5, np.float32))
    axis_1 = graph.constant("axis_1", [1])
    keys = graph.add("Unsqueeze", graph.add("Transpose", keys, perm=[1, 2, 0]), axis_1)
    values = graph.add("Unsqueeze", graph.add("Transpose", values, perm=[1, 0, 2]), axis_1)

    scores = graph.add("Add", graph.add("MatMul", query, keys), "mask")
    out = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), values)
    flat = graph.constant("flat_shape", [-1, shape.hidden])
    out = graph.add("Reshape", graph.add("Transpose", out, perm=[2, 0, 1, 3]), flat)
    return graph.linear(out, f"{layer}.o_proj"), key, value


def rotary(graph: Graph, x: str, heads: int) -> str:
    """Rotary position embedding of `x` [q, heads * head_dim]; the operator wants a batch axis, so the result is [1, q, ...]."""
    return graph.add("RotaryEmbedding", graph.add("Unsqueeze", x, "axis_0"), "rope_cos", "rope_sin", "batched_positions", num_heads=heads)


def with_past(graph: Graph, past: str, new: str, index: int) -> str:
    """A layer's cached keys or values followed by the new ones, [past + q, kv_heads, head_dim]."""
    cached = graph.add("Gather", past, graph.constant(f"layer_{index}", index), axis=1)
    return graph.add("Concat", cached, new, axis=0)


def feed_forward(graph: Graph, x: str, name: str) -> str:
    gate = graph.linear(x, f"{name}.gate_proj")
    gate = graph.add("Mul", gate, graph.add("Sigmoid", gate))
    return graph.linear(graph.add("Mul", gate, graph.linear(x, f"{name}.up_proj")), f"{name}.down_proj")


def declared(graph: Graph, shape: LlamaShape) -> onnx.ModelProto:
    """The graph with its inputs and outputs declared, checked."""
    cache = [shape.layers, shape.kv_heads, shape.head_dim]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["q"]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, ["q"]),
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["q", "past_and_q"]),
        helper.make_tensor_value_info("past_keys", TensorProto.FLOAT, ["past", *cache]),
        helper.make_tensor_value_info("past_values", TensorProto.FLOAT, ["past", *cache]),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["q", shape.vocabulary]),
        helper.make_tensor_value_info("new_keys", TensorProto.FLOAT, ["q", *cache]),
        helper.make_tensor_value_info("new_values", TensorProto.FLOAT, ["q", *cache]),
    ]
    onnx_graph = helper.make_graph(graph.nodes, "llama", inputs, outputs, list(graph.initializers.values()))
    proto = helper.make_model(onnx_graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(proto, full_check=True)
    return proto
