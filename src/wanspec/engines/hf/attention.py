"""Attention over grouped heads, without copies of keys and values.

With a mask, transformers' own repeats keys and values for each query head that shares them: at a long past that is half of a pass. Here the
query heads of a group stand below each other as rows of one head, which see the same.
"""

from __future__ import annotations

import torch
import transformers
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "wanspec_grouped"


def grouped_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: object
) -> tuple[Tensor, None]:
    """As transformers' `sdpa_attention_forward`: `query` [lines, heads, rows, size], others with fewer heads, the mask for all heads."""
    lines, heads, rows, _ = query.shape
    groups = heads // key.shape[1]
    if groups == 1 or attention_mask is None or any(more.get(name) is not None for name in ("position_bias", "softcap")):
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **more)
        return found
    rows_found = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(lines, key.shape[1], groups * rows, query.shape[3]),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        scale=more.get("scaling"),
    )
    return rows_found.reshape(lines, heads, rows, value.shape[3]).transpose(1, 2).contiguous(), None


transformers.AttentionInterface.register(NAME, grouped_attention)
