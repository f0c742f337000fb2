"""The mask of a pass, made on the device: which slots each row sees. A row sees slots of its own session only."""

from __future__ import annotations

import torch
from torch import Tensor

from wanspec.engines.hf.batch import WORD_BITS


def mask_of(spans: Tensor, appended: Tensor, nodes: Tensor, slots: int) -> Tensor:
    """[lines, 1, rows, slots]: whether a row sees a slot of its line. The arguments are those of `PaddedBatch`."""
    device = nodes.device
    prefix, cached, new = spans.long()[:, :, None]
    slot = torch.arange(slots, device=device)
    row_of_slot = (slot - prefix - cached)[:, None]
    mask = (slot < prefix)[:, None] | (row_of_slot >= 0) & (row_of_slot < appended[:, :, None])
    seen = (nodes[..., None] >> torch.arange(WORD_BITS, device=device) & 1).bool().flatten(2)
    node = torch.arange(seen.shape[2], device=device)
    slot_of_node = (prefix + node + torch.where(node < cached, 0, new)).clamp_max(slots - 1)  # the last slot is nobody's
    return mask.scatter(2, slot_of_node[:, None].expand_as(seen), seen)[:, None]


def over_pool(mask: Tensor, reads: Tensor, reach: int) -> Tensor:
    """The same of the only line, over the pool's first slots in the order of the pool [1, 1, rows, reach]."""
    found = torch.zeros((*mask.shape[:3], reach), dtype=torch.bool, device=mask.device)
    return found.index_copy(3, reads[0].long(), mask)
