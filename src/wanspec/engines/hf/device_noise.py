"""The noise of `engines.noise` on a device: the same hashes to the last bit, in whole numbers of 64 bits of which 32 count."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from wanspec.core.speculation.types import NoiseName
from wanspec.engines import noise
from wanspec.engines.hf.crossing import Numbers, sent

_WORD = 0xFFFFFFFF

Place = tuple[NoiseName, int, int]
"""Whose noise, the seed, and the position of the token."""


def exponentials(places: Sequence[Place | None], size: int, device: torch.device) -> Tensor:
    """The noise of each place [places, size]; ones where there is none, as the choice is greedy ([places, 1] if all are)."""
    distinct = sorted({place for place in places if place is not None})  # a tree's nodes share few positions
    if not distinct:
        return torch.ones((len(places), 1), device=device)
    murmurs = [noise.mixed_words(seed, position - 1) for name, seed, position in distinct if name == "murmur3"]
    philoxes = [noise.philox_key(seed, position - 1) for name, seed, position in distinct if name == "philox"]
    number_of = {place: number for number, place in enumerate(distinct)}
    numbers = np.array([len(distinct) if place is None else number_of[place] for place in places], np.int32)
    keys = [words(murmurs), words([key & _WORD for key in philoxes]), words([key >> 32 for key in philoxes])]
    rows, states, low_keys, high_keys = sent([numbers, *keys], device)
    found = torch.ones((len(distinct) + 1, size), dtype=torch.float32, device=device)
    if murmurs:
        found[: len(murmurs)] = -torch.log((murmur3(states, size) + 0.5) * 2.0**-32)
    if philoxes:
        hashes = philox(low_keys, high_keys, size)
        half = torch.minimum(hashes, _WORD - hashes)  # 31 bits, see `engines.noise`
        found[len(murmurs) : -1] = -torch.log1p(-(half.double() * 2.0**-31).clamp_min(2.0**-31))
    return found.index_select(0, rows)


def murmur3(states: Tensor, size: int) -> Tensor:
    """`engines.noise.murmur3` after each state of seed and position, the latter as `words` [states, size]."""
    state = _mixed_tokens(size, states.device) ^ _unsigned(states)[:, None]
    state = ((state << 13 | state >> 19) & _WORD) * 5 + noise.MURMUR_ADDED & _WORD
    state ^= noise.HASHED_BYTES
    state ^= state >> 16
    state = state * noise.MURMUR_FACTORS[0] & _WORD
    state ^= state >> 13
    state = state * noise.MURMUR_FACTORS[1] & _WORD
    state ^= state >> 16
    return state.double()


def philox(low_keys: Tensor, high_keys: Tensor, size: int) -> Tensor:
    """`engines.noise.philox` with each key, given as `words` [keys, size]."""
    first, second, *added = noise.PHILOX_4X32
    token = torch.arange(size, device=low_keys.device).expand(len(low_keys), size)
    one, two, three, four = token, *(torch.zeros_like(token) for _ in range(3))
    keys = _unsigned(low_keys)[:, None], _unsigned(high_keys)[:, None]
    for _ in range(noise.PHILOX_ROUNDS):
        low, high = one * first, three * second  # their lower 64 bits, as whole numbers wrap around
        one, two = (high >> 32 & _WORD) ^ two ^ keys[0], high & _WORD
        three, four = (low >> 32 & _WORD) ^ four ^ keys[1], low & _WORD
        keys = (keys[0] + added[0]) & _WORD, (keys[1] + added[1]) & _WORD
    return one


def words(numbers: Sequence[int]) -> Numbers:
    """Numbers below 2**32 as they are sent."""
    return np.array(numbers, np.uint32).view(np.int32)


def _unsigned(sent_words: Tensor) -> Tensor:
    return sent_words.long() & _WORD


@lru_cache(maxsize=4)
def _mixed_tokens(size: int, device: torch.device) -> Tensor:
    """`engines.noise.mixed_tokens`, sent once."""
    return _unsigned(sent([noise.mixed_tokens(size).view(np.int32)], device)[0])
