"""From logits to choices on the logits' own device: the definition of `core.speculation.sampling`, for many rows at once.

What crosses to the host is a token for each row of the target, and for each row of the draft eight tokens with their scores and an entropy.
A GPU is asked for as few and as large operations as possible: rows of all sessions are chosen from together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wanspec.core.speculation.sampling import is_greedy
from wanspec.core.speculation.types import MAX_BRANCH, DraftChoices, LogProbs, SamplingParams, ScoreItem, TargetChoices
from wanspec.core.speculation.verification import walk
from wanspec.engines import noise

MAX_ROWS = 128
"""Rows chosen from at a time: with a vocabulary of 128k, 66 MB for each array of them."""
NUCLEUS_TOKENS = 1024
"""That hold a nucleus as a rule: so many of the most probable are looked at first."""
_WORD = 0xFFFFFFFF


class Question(NamedTuple):
    """What is to be chosen after one row of logits."""

    sampling: SamplingParams
    """How."""
    position: int
    """Of the token."""


def verify(items: Sequence[ScoreItem], rows: Tensor) -> tuple[TargetChoices, ...]:
    """The target's choices, by the logits after all rows of all items [rows, vocabulary]."""
    tokens = iter(target_tokens(rows, questions_of(items)))
    starts, start = [], 0
    walks: list[list[tuple[int, int]]] = []
    for item in items:
        chosen = [next(tokens) for _ in item.next_positions]
        walks.append(walk(item, chosen.__getitem__) if chosen else [])
        starts.append(start)
        start += num_rows(item)
    places = {index: [start + row for row, _ in walked] for index, (start, walked) in enumerate(zip(starts, walks, strict=True))}
    found = []
    for index, (item, walked) in enumerate(zip(items, walks, strict=True)):
        if not walked:
            found.append(TargetChoices(tokens=()))
            continue
        own, numbers = tuple([token for _, token in walked]), places[index]
        found.append(
            TargetChoices(
                tokens=own,
                log_probs=() if item.num_log_probs is None else log_probs_of(rows[numbers], own, count=item.num_log_probs),
                entropy_nats=entropy_nats(rows[numbers[-1]], item.sampling) if item.wants_entropy else None,
            )
        )
    return tuple(found)


def expand(items: Sequence[ScoreItem], rows: Tensor) -> tuple[tuple[DraftChoices, ...], ...]:
    """The draft model's rankings, by the logits after all rows of all items [rows, vocabulary]."""
    ranked = iter(draft_choices(rows, questions_of(items)))
    return tuple([tuple([next(ranked) for _ in item.next_positions]) for item in items])


def num_rows(item: ScoreItem) -> int:
    """Rows that are asked for: none where nothing is to be chosen."""
    return len(item.next_positions)


def questions_of(items: Sequence[ScoreItem]) -> list[Question]:
    """One for each row."""
    return [Question(item.sampling, position) for item in items for position in item.next_positions]


def target_tokens(rows: Tensor, questions: Sequence[Question]) -> list[int]:
    """The target's token after each row of logits [rows, vocabulary]."""
    return [token for part, own in _parts(rows, questions) for token in _target_tokens(part, own)]


def draft_choices(rows: Tensor, questions: Sequence[Question], *, count: int = MAX_BRANCH) -> list[DraftChoices]:
    """The draft model's ranking after each row of logits [rows, vocabulary]; see `engines.choosing.draft_choices`."""
    return [choices for part, own in _parts(rows, questions) for choices in _draft_choices(part, own, count)]


def log_probs_of(rows: Tensor, tokens: Sequence[int], *, count: int) -> tuple[LogProbs, ...]:
    """For each row of logits the log probability of its token, and of the `count` most probable ones."""
    shares = torch.log_softmax(_tamed(rows.float()), dim=1)
    own = shares.gather(1, torch.tensor(tokens, device=rows.device)[:, None])
    values, indices = _largest(shares, count)
    table = torch.cat((own, values), dim=1).tolist()
    return tuple(
        [
            LogProbs(log_prob=min(0.0, log_prob), top=tuple(zip(places, [min(0.0, value) for value in top], strict=True)))
            for (log_prob, *top), places in zip(table, indices.tolist(), strict=True)
        ]
    )


def entropy_nats(row: Tensor, params: SamplingParams) -> float:
    """Entropy of the distribution that the token after one row of logits is drawn from, before the noise."""
    shifted, weights = _limited(row[None], [Question(params, 1)])
    return float(_entropies(shifted, weights)[0])


def exponentials(questions: Sequence[Question], size: int, device: torch.device) -> Tensor:
    """The noise of each question [questions, size]; ones where the choice is greedy."""
    keys = [None if is_greedy(one.sampling) else (one.sampling.noise, one.sampling.seed, one.position) for one in questions]
    distinct = list(dict.fromkeys(keys))
    found = torch.ones((len(distinct), size), dtype=torch.float32, device=device)
    murmurs = [(index, key) for index, key in enumerate(distinct) if key is not None and key[0] == "murmur3"]
    if murmurs:
        hashes = murmur3([noise.mixed_words(seed, position - 1) for _, (_, seed, position) in murmurs], size, device)
        found[[index for index, _ in murmurs]] = -torch.log((hashes + 0.5) * 2.0**-32).float()
    for index, key in enumerate(distinct):
        if key is not None and key[0] == "philox":  # on the host: who asks for it compares texts, and counts no milliseconds
            found[index] = torch.from_numpy(noise.exponentials(*key, size)).to(device)
    places = {key: index for index, key in enumerate(distinct)}
    return found[[places[key] for key in keys]]


def murmur3(states: Sequence[int], size: int, device: torch.device) -> Tensor:
    """`engines.noise.murmur3` after each state of seed and position [states, size]: whole numbers, as doubles."""
    mixed = torch.from_numpy(noise.mixed_tokens(size).astype("int64")).to(device)
    state = mixed ^ torch.tensor(states, dtype=torch.int64, device=device)[:, None]
    state = ((state << 13 | state >> 19) & _WORD) * 5 + noise.MURMUR_ADDED & _WORD
    state ^= noise.HASHED_BYTES
    state ^= state >> 16
    state = state * noise.MURMUR_FACTORS[0] & _WORD
    state ^= state >> 13
    state = state * noise.MURMUR_FACTORS[1] & _WORD
    state ^= state >> 16
    return state.double()


def _parts(rows: Tensor, questions: Sequence[Question]) -> list[tuple[Tensor, Sequence[Question]]]:
    starts = range(0, len(questions), MAX_ROWS)
    return [(rows[start : start + MAX_ROWS], questions[start : start + MAX_ROWS]) for start in starts]


def _target_tokens(rows: Tensor, questions: Sequence[Question]) -> list[int]:
    if all(is_greedy(one.sampling) for one in questions):
        best: list[int] = _tamed(rows.float()).argmax(dim=1).tolist()
        return best
    shifted, weights = _limited(rows, questions)
    race = weights / exponentials(questions, rows.shape[1], rows.device)
    tokens: list[int] = _order(shifted, race, questions).argmax(dim=1).tolist()
    return tokens


def _draft_choices(rows: Tensor, questions: Sequence[Question], count: int) -> list[DraftChoices]:
    shifted, weights = _weights(rows, questions)
    race = weights / exponentials(questions, rows.shape[1], rows.device)
    totals = race.sum(dim=1, keepdim=True)
    indices = _largest(_order(shifted, race, questions), count)[1]
    if any(_is_limited(one.sampling, rows.shape[1]) for one in questions):
        least = _least_left(shifted, weights, questions)
        is_none_left = (shifted.gather(1, indices) < least).all(dim=1, keepdim=True)
        race = torch.where(shifted < least, 0.0, race)
        if bool(is_none_left.any()):
            indices = torch.where(is_none_left, _largest(_order(shifted, race, questions), count)[1], indices)
    log_probs = torch.log(race.gather(1, indices) / totals).clamp_max(0.0)
    table = torch.cat((_entropies(shifted, weights)[:, None], log_probs), dim=1).tolist()
    found = []
    for (entropy, *shares), tokens in zip(table, indices.tolist(), strict=True):
        kept = [(token, share) for token, share in zip(tokens, shares, strict=True) if share > -math.inf]
        found.append(
            DraftChoices(tokens=tuple([token for token, _ in kept]), log_probs=tuple([share for _, share in kept]), entropy_nats=entropy)
        )
    return found


def _order(shifted: Tensor, race: Tensor, questions: Sequence[Question]) -> Tensor:
    """What tokens are ranked by: the logits themselves where the choice is greedy, as their exponentials may be equal."""
    greedy = torch.tensor([is_greedy(one.sampling) for one in questions], device=shifted.device)[:, None]
    return torch.where(greedy, shifted, race)


def _weights(rows: Tensor, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """Logits over the temperature less the greatest of the row, and their exponentials."""
    scales = [1.0 if is_greedy(one.sampling) else 1.0 / one.sampling.temperature for one in questions]
    logits = _tamed(rows.float())
    most = logits.amax(dim=1, keepdim=True)
    shifted = torch.where(most.isinf(), torch.where(logits == most, 0.0, -math.inf), logits - most)
    shifted *= torch.tensor(scales, dtype=torch.float32, device=rows.device)[:, None]
    return shifted, shifted.exp()


def _limited(rows: Tensor, questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """The same, the weights of tokens that top-k and top-p do not leave being 0."""
    shifted, weights = _weights(rows, questions)
    if any(_is_limited(one.sampling, rows.shape[1]) for one in questions):
        weights = torch.where(shifted < _least_left(shifted, weights, questions), 0.0, weights)
    return shifted, weights


def _tamed(values: Tensor) -> Tensor:
    return torch.nan_to_num(values, nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def _entropies(shifted: Tensor, weights: Tensor) -> Tensor:
    totals = weights.sum(dim=1)
    return (totals.log() - (weights * shifted.clamp_min(-1e4)).sum(dim=1) / totals).clamp_min(0.0)


def _is_limited(params: SamplingParams, size: int) -> bool:
    return not is_greedy(params) and (0 < params.top_k < size or params.top_p < 1.0)


def _least_left(shifted: Tensor, weights: Tensor, questions: Sequence[Question]) -> Tensor:
    """The least of each row's shifted logits that top-k and top-p leave [rows, 1]."""
    size = shifted.shape[1]
    least = torch.full((len(questions), 1), -math.inf, device=shifted.device)
    limited = [index for index, one in enumerate(questions) if _is_limited(one.sampling, size)]
    if limited:
        params = [questions[index].sampling for index in limited]
        most = max([one.top_k for one in params if one.top_k < size], default=0)
        found, is_whole = _least_of(shifted[limited], weights[limited], params, most=min(size, max(most, NUCLEUS_TOKENS)))
        if not is_whole:
            found, _ = _least_of(shifted[limited], weights[limited], params, most=size)
        least[limited] = found
    return least


def _least_of(shifted: Tensor, weights: Tensor, params: Sequence[SamplingParams], *, most: int) -> tuple[Tensor, bool]:
    """The same by the `most` most probable tokens of each row; and whether these are enough."""
    rows, size = shifted.shape
    device = shifted.device
    values = shifted.topk(most, dim=1).values
    top_k = torch.tensor([one.top_k if 0 < one.top_k < size else size for one in params], device=device)[:, None]
    top_p = torch.tensor([one.top_p for one in params], dtype=torch.float64, device=device)[:, None]
    least_k = values.gather(1, top_k.clamp_max(most) - 1)
    is_in_k = (top_k < size) & (values < least_k)
    exponentials_of = torch.where(is_in_k, 0.0, values.exp()).double()
    reached = exponentials_of.cumsum(dim=1)
    totals = torch.where(top_k < size, reached[:, -1:], weights.sum(dim=1, keepdim=True).double())
    is_first = torch.cat((torch.ones((rows, 1), dtype=torch.bool, device=device), values[:, 1:] < values[:, :-1]), dim=1)
    above = reached - exponentials_of
    is_left = is_first & ~is_in_k & (above < torch.where(top_p < 1.0, top_p, math.inf) * totals)
    is_left[:, 0] = True
    last = most - 1 - is_left.flip(1).int().argmax(dim=1, keepdim=True)
    least = values.gather(1, last)
    is_tied = values[:, -1:] == least_k  # there may be more of these
    is_short = (top_p < 1.0) & torch.where(top_k < size, is_tied, reached[:, -1:] < top_p * totals)
    return least, most == size or not bool(is_short.any())


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row, best first, of equal ones the lowest first, and their places."""
    size = values.shape[1]
    count = min(count, size)
    if not count:
        return values[:, :0], torch.empty((len(values), 0), dtype=torch.int64, device=values.device)
    least = values.topk(count, dim=1).values[:, -1:]  # topk has any of those that tie for the last place
    from_end = torch.arange(size, 0, -1, dtype=torch.float32, device=values.device)  # whole numbers below 2**24 are exact
    in_order = torch.where(values > least, from_end + size, torch.where(values == least, from_end, 0.0))
    places = in_order.topk(count, dim=1).indices.sort(dim=1).values
    found, order = values.gather(1, places).sort(dim=1, descending=True, stable=True)
    return found, places.gather(1, order)
