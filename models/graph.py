"""Writes a Llama as an ONNX graph: what `llama.Llama.extend` computes, for several sessions at a time, one operator after another.

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

    def split(self, x: str, lengths: str) -> tuple[str, str]:
        """The two parts, of these lengths, of the last axis."""
        first, second = f"Split_{len(self.nodes)}_first", f"Split_{len(self.nodes)}_second"
        self.nodes.append(helper.make_node("Split", [x, lengths], [first, second], name=first, axis=-1))
        return first, second

    def linear(self, x: str, name: str) -> str:
        return self.add("Gemm", x, self.weight(f"{name}.weight"), transB=1)

    def norm(self, x: str, name: str) -> str:
        return self.add("RMSNormalization", x, self.weight(f"{name}.weight"), axis=-1, epsilon=1e-5)


def build(model: Llama) -> onnx.ModelProto:
    """The model that scores `ids` [q] at `positions` [q], the tokens of `b` sessions with at most `n` each, given their caches.

    `rows` [b, n] says which of the q tokens are whose (any, where a session has fewer than n) and `places` [q] where in that table each
    stands. `mask` [b, 1, 1, n, past + n] is additive. For each layer `past_keys_LAYER` and `past_values_LAYER` are
    [b, kv_heads, 1, past, head_dim]. Returns `logits` [q, vocabulary], `new_keys` and `new_values` [q, layers, kv_heads, head_dim].
    """
    shape = model.shape
    graph = Graph({name: weight.float().numpy() for name, weight in model.state_dict().items()})
    half = shape.head_dim // 2  # the model's tables hold every angle twice
    graph.constant("rope_cos", model.cos[:, :half].numpy(), np.float32)
    graph.constant("rope_sin", model.sin[:, :half].numpy(), np.float32)
    graph.add("Unsqueeze", "positions", graph.constant("axis_0", [0]), out="batched_positions")
    graph.add("Concat", *(graph.add("Shape", part, start=-2, end=-1) for part in ("past_keys_0", "mask")), axis=0, out="lengths")
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
    cache = graph.constant("cache_shape", [-1, 1, shape.kv_heads, shape.head_dim])
    for name, parts in (("new_keys", keys), ("new_values", values)):
        graph.add("Concat", *(graph.add("Reshape", part, cache) for part in parts), axis=1, out=name)
    return declared(graph, shape)


def attention(graph: Graph, shape: LlamaShape, x: str, index: int) -> tuple[str, str, str]:
    """Output [q, hidden] of a layer's attention over the caches and `x` itself, and its new keys and values [q, kv_heads, head_dim].

    Within it rows are laid out by session, [b, kv_heads, groups, n, ...]. Scores and sums over a cache and over new rows are computed
    apart, so that no cache is copied.
    """
    layer, head_dim, kv_heads = f"model.layers.{index}.self_attn", shape.head_dim, shape.kv_heads
    head_shape = graph.constant("kv_head_shape", [-1, kv_heads, 1, head_dim])
    key = graph.add("Reshape", rotary(graph, graph.linear(x, f"{layer}.k_proj"), kv_heads), head_shape)
    value = graph.add("Reshape", graph.linear(x, f"{layer}.v_proj"), head_shape)
    query = rotary(graph, graph.linear(x, f"{layer}.q_proj"), shape.heads)
    query = graph.add("Mul", query, graph.constant("scale", head_dim**-0.5, np.float32))
    query = graph.add("Reshape", query, graph.constant("query_shape", [-1, kv_heads, shape.heads // kv_heads, head_dim]))
    by_session = [graph.add("Transpose", graph.add("Gather", rows, "rows"), perm=[0, 2, 3, 1, 4]) for rows in (query, key, value)]

    scores = [graph.add("MatMul", by_session[0], transposed(graph, keys)) for keys in (f"past_keys_{index}", by_session[1])]
    weights = graph.add("Softmax", graph.add("Add", graph.add("Concat", *scores, axis=-1), "mask"), axis=-1)
    past, new = graph.split(weights, "lengths")
    out = graph.add("Add", graph.add("MatMul", past, f"past_values_{index}"), graph.add("MatMul", new, by_session[2]))
    out = graph.add("Reshape", graph.add("Transpose", out, perm=[0, 3, 1, 2, 4]), graph.constant("flat_shape", [-1, shape.hidden]))
    return graph.linear(graph.add("Gather", out, "places"), f"{layer}.o_proj"), key, value


def transposed(graph: Graph, x: str) -> str:
    """The last two axes exchanged; the runtime does that within the product that it is for."""
    return graph.add("Transpose", x, perm=[0, 1, 2, 4, 3])


def rotary(graph: Graph, x: str, heads: int) -> str:
    """Rotary position embedding of `x` [q, heads * head_dim]; the operator wants a batch axis, so the result is [1, q, ...]."""
    return graph.add("RotaryEmbedding", graph.add("Unsqueeze", x, "axis_0"), "rope_cos", "rope_sin", "batched_positions", num_heads=heads)


def feed_forward(graph: Graph, x: str, name: str) -> str:
    gate = graph.linear(x, f"{name}.gate_proj")
    gate = graph.add("Mul", gate, graph.add("Sigmoid", gate))
    return graph.linear(graph.add("Mul", gate, graph.linear(x, f"{name}.up_proj")), f"{name}.down_proj")


def declared(graph: Graph, shape: LlamaShape) -> onnx.ModelProto:
    """The graph with its inputs and outputs declared, checked."""
    cache = [shape.layers, shape.kv_heads, shape.head_dim]
    past = ["b", shape.kv_heads, 1, "past", shape.head_dim]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["q"]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, ["q"]),
        helper.make_tensor_value_info("rows", TensorProto.INT64, ["b", "n"]),
        helper.make_tensor_value_info("places", TensorProto.INT64, ["q"]),
        helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["b", 1, 1, "n", "past_and_n"]),
    ]
    names = [f"past_{kind}_{layer}" for kind in ("keys", "values") for layer in range(shape.layers)]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, past) for name in names]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["q", shape.vocabulary]),
        helper.make_tensor_value_info("new_keys", TensorProto.FLOAT, ["q", *cache]),
        helper.make_tensor_value_info("new_values", TensorProto.FLOAT, ["q", *cache]),
    ]
    onnx_graph = helper.make_graph(graph.nodes, "llama", inputs, outputs, list(graph.initializers.values()))
    proto = helper.make_model(onnx_graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(proto, full_check=True)
    return proto
