"""The Llama architecture in a page: one set of layers, a training forward and an incremental one for export.

Parameter names are those of `transformers.LlamaForCausalLM`, so a checkpoint loads there as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """Sizes of a model. Keys and values have `kv_heads` heads, shared by groups of query heads."""

    vocabulary: int = 2048
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    context: int = 1024
    rope_theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


TARGET_SHAPE = LlamaShape(hidden=288, layers=6, heads=6, kv_heads=3, feed_forward=768)
DRAFT_SHAPE = LlamaShape(hidden=160, layers=3, heads=4, kv_heads=2, feed_forward=416)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in Hugging Face's half-split layout. `x` is [..., tokens, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        kv_size = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of `x` [batch, tokens, hidden], each [batch, heads, tokens, head_dim]."""
        batch, tokens, _ = x.shape
        q = self.q_proj(x).view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.project(x, cos, sin)
        groups = self.heads // self.kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def extend(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, mask: Tensor, past_keys: Tensor, past_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend from `x` [tokens, hidden] to `past_*` [past, kv_heads, head_dim] and itself under an additive mask.

        Returns the output [tokens, hidden] and the new keys and values [tokens, kv_heads, head_dim].
        """
        q, k, v = (part[0] for part in self.project(x[None], cos, sin))
        tokens, groups = x.shape[0], self.heads // self.kv_heads
        keys = torch.cat((past_keys.transpose(0, 1), k), dim=1)[:, None]
        values = torch.cat((past_values.transpose(0, 1), v), dim=1)[:, None]
        scores = q.view(self.kv_heads, groups, tokens, self.head_dim) @ keys.transpose(-1, -2)
        weights = torch.softmax(scores * self.head_dim**-0.5 + mask, dim=-1)
        out = (weights @ values).reshape(self.heads, tokens, self.head_dim).transpose(0, 1).reshape(tokens, -1)
        return self.o_proj(out), k.transpose(0, 1), v.transpose(0, 1)


class FeedForward(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden, eps=1e-5)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=1e-5)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=1e-5)


class Llama(nn.Module):
    """A Llama with tied embeddings."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2) / shape.head_dim)
        angles = torch.arange(shape.context)[:, None] * torch.cat((frequencies, frequencies))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 / (2 * shape.layers) ** 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
                nn.init.normal_(parameter, std=scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary] of `ids` [batch, tokens], causally."""
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        x = self.model.embed_tokens(ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return F.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def extend(self, ids: Tensor, positions: Tensor, mask: Tensor, past_keys: Tensor, past_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score `ids` [q] at `positions` [q] given a cache; any tree is expressed by `mask`.

        `mask` is additive, [q, past + q]; `past_keys` and `past_values` are [past, layers, kv_heads, head_dim].
        Returns logits [q, vocabulary] and the new keys and values [q, layers, kv_heads, head_dim].
        """
        cos, sin = self.cos[positions], self.sin[positions]
        x = self.model.embed_tokens(ids)
        keys, values = [], []
        for index, layer in enumerate(self.model.layers):
            attended, key, value = layer.self_attn.extend(
                layer.input_layernorm(x), cos, sin, mask=mask, past_keys=past_keys[:, index], past_values=past_values[:, index]
            )
            x = x + attended
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            keys.append(key)
            values.append(value)
        logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight)
        return logits, torch.stack(keys, dim=1), torch.stack(values, dim=1)
