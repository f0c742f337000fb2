"""From logits to choices on the logits' own device: the definition of `core.speculation.sampling`, for many rows at once.

What crosses to the host is a token for each row of the target, and for each row of the draft eight tokens, their log probabilities and an
entropy. A GPU is asked for as few and as large operations as possible, and waited for once: rows of all sessions are chosen from together.
The few rows that need more than the usual number of tokens are found out on the way, and chosen from again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from wanspec.core.speculation.sampling import is_greedy
from wanspec.core.speculation.types import MAX_BRANCH, DraftChoices, LogProbs, SamplingParams, ScoreItem, TargetChoices
from wanspec.core.speculation.verification import walk
from wanspec.engines.hf.crossing import fetched, sent
from wanspec.engines.hf.device_noise import exponentials

T = TypeVar("T")
MAX_ROWS = 128
"""Rows chosen from at a time: with a vocabulary of 128k, 66 MB for each array of them."""
NUCLEUS_TOKENS = 1024
"""That hold a nucleus as a rule: so many of the most probable are looked at first."""
AGAIN = -1
"""In place of a token, or of an entropy: more of the row has to be looked at."""


class Question(NamedTuple):
    """What is to be chosen after one row of logits."""

    sampling: SamplingParams
    """How."""
    position: int
    """Of the token."""


class Asked(NamedTuple):
    """Questions on the device, a row for each."""

    scales: Tensor
    """What logits are multiplied by [rows, 1]: 1 / temperature, or 1 where there is no noise."""
    top_k: Tensor
    """How many tokens top-k leaves [rows, 1]; as many as there are: it cuts nothing."""
    top_p: Tensor
    """The share that top-p leaves [rows, 1]; 1: it cuts nothing."""
    is_greedy: Tensor
    """Whether there is no noise [rows, 1]."""
    are_limited: bool
    """Whether anything is cut, of any row."""


def verify(items: Sequence[ScoreItem], rows: Tensor) -> tuple[TargetChoices, ...]:
    """The target's choices, by the logits after all rows of all items [rows, vocabulary]."""
    tokens = iter(target_tokens(rows, questions_of(items)))
    walks: list[list[tuple[int, int]]] = []
    start = 0
    for item in items:
        chosen = [next(tokens) for _ in item.next_positions]
        walks.append([(start + row, token) for row, token in walk(item, chosen.__getitem__)] if chosen else [])
        start += len(chosen)
    last = [(walked[-1][0], item.sampling) for item, walked in zip(items, walks, strict=True) if walked and item.wants_entropy]
    entropies = iter(entropies_nats(picked(rows, [row for row, _ in last]), [sampling for _, sampling in last]) if last else ())
    return tuple([_verdict(item, walked, rows, entropies) for item, walked in zip(items, walks, strict=True)])


def _verdict(item: ScoreItem, walked: Sequence[tuple[int, int]], rows: Tensor, entropies: Iterator[float]) -> TargetChoices:
    if not walked:  # a piece of a longer text
        return TargetChoices(tokens=())
    numbers, tokens = zip(*walked, strict=True)
    return TargetChoices(
        tokens=tokens,
        log_probs=() if item.num_log_probs is None else log_probs_of(picked(rows, numbers), tokens, count=item.num_log_probs),
        entropy_nats=next(entropies) if item.wants_entropy else None,
    )


def expand(items: Sequence[ScoreItem], rows: Tensor) -> tuple[tuple[DraftChoices, ...], ...]:
    """The draft model's rankings, by the logits after all rows of all items [rows, vocabulary]."""
    ranked = iter(draft_choices(rows, questions_of(items)))
    return tuple([tuple([next(ranked) for _ in item.next_positions]) for item in items])


def questions_of(items: Sequence[ScoreItem]) -> list[Question]:
    """One for each row."""
    return [Question(item.sampling, position) for item in items for position in item.next_positions]


def picked(rows: Tensor, numbers: Sequence[int]) -> Tensor:
    """Some of the rows."""
    return rows.index_select(0, sent([np.array(numbers, np.int32)], rows.device)[0])


def target_tokens(rows: Tensor, questions: Sequence[Question]) -> list[int]:
    """The target's token after each row of logits [rows, vocabulary]."""
    return _settled(rows, questions, _target_tokens)


def draft_choices(rows: Tensor, questions: Sequence[Question], *, count: int = MAX_BRANCH) -> list[DraftChoices]:
    """The draft model's ranking after each row of logits [rows, vocabulary]; see `engines.choosing.draft_choices`."""
    return _settled(rows, questions, lambda part, own, most: _draft_choices(part, own, most, count))


def entropies_nats(rows: Tensor, samplings: Sequence[SamplingParams]) -> list[float]:
    """Entropy of the distribution that the token after each row of logits is drawn from, before the noise."""
    return _settled(rows, [Question(sampling, 1) for sampling in samplings], _entropies_left)


def log_probs_of(rows: Tensor, tokens: Sequence[int], *, count: int) -> tuple[LogProbs, ...]:
    """For each row of logits the log probability of its token, and of the `count` most probable ones."""
    starts = range(0, len(tokens), MAX_ROWS)
    return tuple([one for at in starts for one in _log_probs(rows[at : at + MAX_ROWS], tokens[at : at + MAX_ROWS], count)])


def _log_probs(rows: Tensor, tokens: Sequence[int], count: int) -> list[LogProbs]:
    log_probs = torch.log_softmax(_shifted(rows), dim=1)
    (asked,) = sent([np.array(tokens, np.int32)], rows.device)
    best, places = _largest(log_probs, count)
    values, top = _fetched_together(torch.cat((log_probs.gather(1, asked.long()[:, None]), best), dim=1).clamp_max(0.0), places)
    return [LogProbs(log_prob=own, top=tuple(zip(of, others, strict=True))) for (own, *others), of in zip(values, top, strict=True)]


def _settled(rows: Tensor, questions: Sequence[Question], choose: Callable[[Tensor, Sequence[Question], int], list[T | None]]) -> list[T]:
    """The answers to all questions; `choose` looks at so many of the most probable tokens, and says None where these are too few."""
    found: list[T] = []
    for start in range(0, len(questions), MAX_ROWS):
        part, own = rows[start : start + MAX_ROWS], questions[start : start + MAX_ROWS]
        answers = choose(part, own, NUCLEUS_TOKENS)
        again = [index for index, answer in enumerate(answers) if answer is None]
        second = iter(choose(picked(part, again), [own[index] for index in again], rows.shape[1]) if again else ())
        found += [settled for answer in answers if (settled := next(second) if answer is None else answer) is not None]
    return found


def _target_tokens(rows: Tensor, questions: Sequence[Question], most: int) -> list[int | None]:
    if all(is_greedy(one.sampling) for one in questions):
        return list(fetched(_tamed(rows).argmax(dim=1).int()).tolist())
    asked = _sent(questions, rows)
    shifted, weights, is_short = _limited(rows, asked, most)
    tokens = _order(shifted, weights / _noise(questions, rows), asked).argmax(dim=1, keepdim=True)
    found = fetched(torch.where(is_short, AGAIN, tokens).int())[:, 0].tolist()
    return [None if token == AGAIN else token for token in found]


def _draft_choices(rows: Tensor, questions: Sequence[Question], most: int, count: int) -> list[DraftChoices | None]:
    asked = _sent(questions, rows)
    shifted, weights = _weights(rows, asked)
    race = weights / _noise(questions, rows)
    totals = race.sum(dim=1, keepdim=True)
    places = _largest(_order(shifted, race, asked), count)[1]
    entropies = _entropies(shifted, weights)
    if asked.are_limited:
        least, is_short = _least_left(shifted, weights, asked, most)
        is_none_left = (shifted.gather(1, places) < least).all(dim=1, keepdim=True)
        race = torch.where(shifted < least, 0.0, race)
        if most < rows.shape[1]:
            entropies = torch.where(is_short | is_none_left, AGAIN, entropies)
        else:
            places = torch.where(is_none_left, _largest(_order(shifted, race, asked), count)[1], places)
    log_probs = torch.log(race.gather(1, places) / totals).clamp_max(0.0)
    values, tokens = _fetched_together(torch.cat((entropies, log_probs), dim=1), places)
    return [_ranking(of, shares, entropy) for (entropy, *shares), of in zip(values, tokens, strict=True)]


def _ranking(tokens: Sequence[int], log_probs: Sequence[float], entropy: float) -> DraftChoices | None:
    if entropy == AGAIN:
        return None
    kept = [index for index, log_prob in enumerate(log_probs) if log_prob > -math.inf]
    return DraftChoices(tokens=tuple([tokens[i] for i in kept]), log_probs=tuple([log_probs[i] for i in kept]), entropy_nats=entropy)


def _entropies_left(rows: Tensor, questions: Sequence[Question], most: int) -> list[float | None]:
    shifted, weights, is_short = _limited(rows, _sent(questions, rows), most)
    found = fetched(torch.where(is_short, AGAIN, _entropies(shifted, weights)))[:, 0].tolist()
    return [None if entropy == AGAIN else entropy for entropy in found]


def _sent(questions: Sequence[Question], rows: Tensor) -> Asked:
    size = rows.shape[1]
    greedy = [is_greedy(one.sampling) for one in questions]
    samplings = [SamplingParams() if is_sure else one.sampling for one, is_sure in zip(questions, greedy, strict=True)]
    top_p = np.array([one.top_p for one in samplings])
    top_k = np.array([one.top_k if 0 < one.top_k < size else size for one in samplings], np.int32)
    scales = np.array([1.0 / (one.temperature or 1.0) for one in samplings], np.float32)
    found = sent([top_p.view(np.int32), top_k, scales.view(np.int32), np.array(greedy, np.int32)], rows.device)
    return Asked(
        top_p=found[0].view(torch.float64)[:, None],
        top_k=found[1].long()[:, None],
        scales=found[2].view(torch.float32)[:, None],
        is_greedy=found[3].bool()[:, None],
        are_limited=bool((top_k < size).any() or (top_p < 1.0).any()),
    )


def _noise(questions: Sequence[Question], rows: Tensor) -> Tensor:
    places = [None if is_greedy(one.sampling) else (one.sampling.noise, one.sampling.seed, one.position) for one in questions]
    return exponentials(places, rows.shape[1], rows.device)


def _order(shifted: Tensor, race: Tensor, asked: Asked) -> Tensor:
    """What tokens are ranked by: the logits themselves where the choice is greedy, as their exponentials may be equal."""
    return torch.where(asked.is_greedy, shifted, race)


def _weights(rows: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
    """Logits over the temperature less the greatest of the row, and their exponentials."""
    shifted = _shifted(rows) * asked.scales
    return shifted, shifted.exp()


def _limited(rows: Tensor, asked: Asked, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same, the weights of tokens that top-k and top-p do not leave being 0; and of which rows `most` tokens do not tell."""
    shifted, weights = _weights(rows, asked)
    if not asked.are_limited:
        return shifted, weights, torch.zeros_like(asked.is_greedy)
    least, is_short = _least_left(shifted, weights, asked, most)
    return shifted, torch.where(shifted < least, 0.0, weights), is_short


def _shifted(rows: Tensor) -> Tensor:
    """Logits less the greatest of the row. What is no number is drawn by nobody, and infinite ones share everything."""
    logits = _tamed(rows)
    most = logits.amax(dim=1, keepdim=True)
    return torch.where(most.isinf(), torch.where(logits == most, 0.0, -math.inf), logits - most)


def _tamed(rows: Tensor) -> Tensor:
    return torch.nan_to_num(rows.float(), nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def _entropies(shifted: Tensor, weights: Tensor) -> Tensor:
    """Of each row [rows, 1]."""
    totals = weights.sum(dim=1, keepdim=True)
    return (totals.log() - (weights * shifted.clamp_min(-1e4)).sum(dim=1, keepdim=True) / totals).clamp_min(0.0)


def _least_left(shifted: Tensor, weights: Tensor, asked: Asked, most: int) -> tuple[Tensor, Tensor]:
    """The least of each row's shifted logits that top-k and top-p leave, by the `most` most probable tokens of each row [rows, 1].

    And whether these are too few to tell [rows, 1].
    """
    size = shifted.shape[1]
    most = min(most, size)
    values = shifted.topk(most, dim=1).values
    top_k, cuts_k, cuts_p = asked.top_k, asked.top_k < size, asked.top_p < 1.0
    least_k = values.gather(1, top_k.clamp_max(most) - 1)
    is_beyond_k = cuts_k & (values < least_k)
    exponentials_of = torch.where(is_beyond_k, 0.0, values.exp()).double()
    reached = exponentials_of.cumsum(dim=1)
    goal = torch.where(cuts_p, asked.top_p, math.inf) * torch.where(cuts_k, reached[:, -1:], weights.sum(dim=1, keepdim=True).double())
    is_first = torch.nn.functional.pad(values[:, 1:] < values[:, :-1], (1, 0), value=True)  # of equally probable tokens
    is_left = is_first & ~is_beyond_k & (reached - exponentials_of < goal)
    is_left[:, 0] = True
    last = most - 1 - is_left.flip(1).int().argmax(dim=1, keepdim=True)
    least = torch.where(cuts_k | cuts_p, values.gather(1, last), -math.inf)
    may_be_more = torch.where(cuts_k, (top_k > most) | cuts_p & (values[:, -1:] == least_k), cuts_p & (reached[:, -1:] < goal))
    return least, may_be_more if most < size else torch.zeros_like(may_be_more)


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


def _fetched_together(values: Tensor, places: Tensor) -> tuple[list[list[float]], list[list[int]]]:
    """A table of floats and one of indices, in one transfer."""
    together = fetched(torch.cat((values.view(torch.int32), places.int()), dim=1))
    width = values.shape[1]
    return np.ascontiguousarray(together[:, :width]).view(np.float32).tolist(), together[:, width:].tolist()
