"""The common noise of coupled sampling (`core.speculation.sampling`): a hash of seed, position and token, as exponential variables.

Every token has a hash of 32 bits, and that makes it an exponential variable E. The token that is drawn is the one with the greatest
weight / E, where weights are probabilities times any constant: that is the Gumbel-max trick (argmax of log weight - log E), one logarithm
cheaper. Hashes are integers, so every engine computes the same, on every device; only the logarithm may differ, in its last digits.

Two hashes are known, so that text with a seed can equal what another engine writes by itself:

- `murmur3`: MurmurHash3 (x86, 32 bits, seed 0) of 16 bytes, little-endian: the seed (8), the position (4), the token (4). SGLang draws with
  the same numbers where neither top_k nor top_p is set (with one of these it numbers the tokens by their rank).
- `philox`: Philox 4x32-10 of the token, keyed by the first word of Philox 4x64-10 of the position, which the seed keys. vLLM's V2 runner
  draws with the same numbers.

Both engines count a token's position by the one before it, which the model is fed; so do we here.

The state of MurmurHash3 has 32 bits, and so there are 2**32 different noises. A hash has 32 bits too: beside a sure token, one that is less
probable than some 1e-10 is drawn too seldom.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wanspec.core.speculation.sampling import is_greedy
from wanspec.core.speculation.types import NoiseName, SamplingParams

Hashes = NDArray[np.uint32]
Exponentials = NDArray[np.float32]

MAX_CACHED_BYTES: Final = 128 << 20
"""256 positions at a vocabulary of 128k: those of some twenty texts. A miss costs the computation and changes nothing."""
SURE_BITS: Final = 0xFF000000
"""From this hash on E is small, and the token likely to win: its logarithm is taken in double precision."""

_WORD = 0xFFFFFFFF
_C1, _C2 = 0xCC9E2D51, 0x1B873593
MURMUR_ADDED: Final = 0xE6546B64
MURMUR_FACTORS: Final = (0x85EBCA6B, 0xC2B2AE35)
HASHED_BYTES: Final = 16


def mixed_words(seed: int, position: int) -> int:
    """MurmurHash3's state after seed and position, before the token."""
    state = 0
    for word in (seed & _WORD, seed >> 32, position):
        mixed = (word * _C1) & _WORD
        mixed = ((mixed << 15 | mixed >> 17) * _C2) & _WORD
        state ^= mixed
        state = ((state << 13 | state >> 19) * 5 + MURMUR_ADDED) & _WORD
    return state


@lru_cache(maxsize=4)
def mixed_tokens(size: int) -> Hashes:
    """What MurmurHash3 makes of each token, before it meets the state."""
    mixed = np.arange(size, dtype=np.uint32) * np.uint32(_C1)
    mixed = (mixed << np.uint32(15) | mixed >> np.uint32(17)) * np.uint32(_C2)
    mixed.flags.writeable = False
    return mixed


def murmur3(seed: int, position: int, size: int, *, spare: Hashes | None = None) -> Hashes:
    """The hash of each token [size] at a position; see the module's text. `spare`: an array [size] to work in."""
    state = mixed_tokens(size) ^ np.uint32(mixed_words(seed, position))
    spare = np.right_shift(state, np.uint32(19), out=spare)
    state <<= np.uint32(13)
    state |= spare
    state *= np.uint32(5)
    state += np.uint32(MURMUR_ADDED)
    state ^= np.uint32(HASHED_BYTES)
    for shift, factor in zip((16, 13), MURMUR_FACTORS, strict=True):
        np.right_shift(state, np.uint32(shift), out=spare)
        state ^= spare
        state *= np.uint32(factor)
    np.right_shift(state, np.uint32(16), out=spare)
    state ^= spare
    return state


PHILOX_ROUNDS: Final = 10
PHILOX_BLOCK: Final = 16_384
"""Tokens at a time: what is worked on stays in the processor's cache."""
PHILOX_4X64: Final = (0xD2E7470EE14C6C93, 0xCA5A826395121157, 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
PHILOX_4X32: Final = (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85)
"""Two multipliers, and what is added to the two words of the key in each round."""


def philox_key(seed: int, position: int) -> int:
    """The key of a position's tokens, 64 bits."""
    first, second, add_first, add_second = PHILOX_4X64
    mask = (1 << 64) - 1
    words, keys = (position, 0, 0, 0), (seed, 0)
    for _ in range(PHILOX_ROUNDS):
        low, high = words[0] * first, words[2] * second
        words = (high >> 64) ^ words[1] ^ keys[0], high & mask, (low >> 64) ^ words[3] ^ keys[1], low & mask
        keys = (keys[0] + add_first) & mask, (keys[1] + add_second) & mask
    return words[0]


def philox(seed: int, position: int, size: int) -> Hashes:
    """The first word of each token [size] at a position; see the module's text."""
    key = philox_key(seed, position)
    keys = key & _WORD, key >> 32
    blocks = [_philox(start, min(start + PHILOX_BLOCK, size), keys) for start in range(0, size, PHILOX_BLOCK)]
    return np.concatenate(blocks)


def _philox(start: int, stop: int, keys: tuple[int, int]) -> Hashes:
    first, second, add_first, add_second = PHILOX_4X32
    size, half = stop - start, np.uint64(32)
    words = [np.arange(start, stop, dtype=np.uint32), *(np.zeros(size, np.uint32) for _ in range(3))]
    for _ in range(PHILOX_ROUNDS):
        low, high = words[0].astype(np.uint64) * np.uint64(first), words[2].astype(np.uint64) * np.uint64(second)
        words = [
            (high >> half).astype(np.uint32) ^ words[1] ^ np.uint32(keys[0]),
            high.astype(np.uint32),
            (low >> half).astype(np.uint32) ^ words[3] ^ np.uint32(keys[1]),
            low.astype(np.uint32),
        ]
        keys = (keys[0] + add_first) & _WORD, (keys[1] + add_second) & _WORD
    return words[0]


def exponentials(name: NoiseName, seed: int, position: int, size: int) -> Exponentials:
    """The exponential variable of each token [size] for the choice of the token at `position` (at least 1)."""
    if name == "philox":
        # A number of 31 bits whose smallest values win; Triton's uniform distribution.
        bits = philox(seed, position - 1, size).view(np.int32)
        uniform = np.maximum(np.where(bits < 0, -1 - bits, bits) * 2.0**-31, 2.0**-31)
        return (-np.log1p(-uniform)).astype(np.float32)
    noise = np.empty(size, np.float32)
    hashes = murmur3(seed, position - 1, size, spare=noise.view(np.uint32))
    noise[:] = hashes
    noise += np.float32(0.5)
    noise *= np.float32(2.0**-32)
    np.log(noise, out=noise)
    np.negative(noise, out=noise)
    sure = np.flatnonzero(hashes >= SURE_BITS)
    noise[sure] = -np.log((hashes[sure] + 0.5) * 2.0**-32)
    return noise


class NoiseCache:
    """`exponentials` with the latest results kept: a tree's nodes share few positions, and draft and target want the same noise.

    Threads may share it.
    """

    def __init__(self, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[tuple[NoiseName, int, int, int], Exponentials] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        """Size of the results kept."""

    def __call__(self, sampling: SamplingParams, position: int, size: int) -> Exponentials | None:
        """The noise [size] for the choice of the token at `position`, to be read only; None for greedy decoding."""
        if is_greedy(sampling):
            return None
        key = (sampling.noise, sampling.seed, position, size)
        with self._lock:
            if (known := self._rows.get(key)) is not None:
                self._rows.move_to_end(key)
                return known
        row = exponentials(*key)
        row.flags.writeable = False
        with self._lock:
            if key not in self._rows:
                self._rows[key] = row
                self.bytes += row.nbytes
            while self.bytes > self._max_bytes:
                self.bytes -= self._rows.popitem(last=False)[1].nbytes
        return row

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._rows.clear()
            self.bytes = 0


noise_of = NoiseCache()
"""That of this process: its target and its draft model want the same."""
