"""The way between host and device: every byte of a pass goes through these two functions, which count it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int32]
"""Ids, positions, indices and bits: whole numbers of 32 bits, or others seen as such."""


@dataclass(slots=True)
class Traffic:
    """What has crossed in this process, all devices together."""

    sent_bytes: int = 0
    """From the host to a device."""
    fetched_bytes: int = 0
    """From a device to the host."""


traffic = Traffic()


def sent(arrays: Sequence[Numbers], device: torch.device) -> list[Tensor]:
    """Arrays on the device, in one transfer that nobody waits for."""
    flat = np.concatenate([array.ravel() for array in arrays])
    traffic.sent_bytes += flat.nbytes
    host = torch.from_numpy(flat)
    if device.type == "cuda":
        host = host.pin_memory()  # from other memory a copy may first wait for all that the GPU has to do
    parts = host.to(device, non_blocking=True).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def fetched(tensor: Tensor) -> NDArray[Any]:
    """A tensor's values in the host's memory; the host waits for them. Half precision becomes float32 there."""
    traffic.fetched_bytes += tensor.nbytes
    found = tensor.cpu()
    array: NDArray[Any] = (found.float() if found.is_floating_point() and found.itemsize < np.float32().itemsize else found).numpy()
    return array
