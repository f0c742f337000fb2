"""Token traces: how target and draft see each position of real texts, and what the draft says beside them.

A trace is a NumPy archive (`.npz`) that `numpy.load` opens without pickle. N are the generated tokens of all texts, M the contexts beside
the texts (*branches*) in which the draft was asked too, RANKS the first choices that are kept:

| array | shape | meaning |
|---|---|---|
| `prompt_tokens` | [prompts' tokens] | the prompts, one after the other |
| `sequence` | [N] | which text, counted from 0 |
| `position` | [N] | absolute position of the token; of a text's first one, its prompt's length |
| `token` | [N] | what the target chose |
| `rank` | [N] | where the draft has it, 1 is first |
| `draft_entropy_nats`, `target_entropy_nats` | [N] | of each model's distribution there, before the noise |
| `token_log_prob` | [N] | the draft's natural logarithm of its probability (of its share under the noise where T > 0) |
| `choices`, `log_probs` | [N, RANKS] | the draft's first choices in order, and the same of them; -1 and -inf where there are no more |
| `branch_parent` | [M] | the context that it branches from: row `n` of the texts, or N + `m` for an earlier branch |
| `branch_token` | [M] | the token that leads there |
| `branch_entropy_nats` | [M] | the draft's entropy there |
| `branch_choices`, `branch_log_probs` | [M, RANKS] | its first choices there |
| `vocabulary_size`, `temperature`, `seed` | [] | what the trace was recorded with |
| `target`, `draft` | [] | the models, as they were asked for (`hf:FOLDER`) |
"""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanspec.core.speculation.sampling import MAX_TEMPERATURE
from wanspec.core.speculation.types import MAX_VOCABULARY
from wanspec.errors import ConfigError
from wanspec.files import write_whole
from wanspec.lab.records.parquet import write_parquet

RANKS = 8
"""First choices of the draft kept: as many children as a policy may offer."""
MAX_BYTES = 2 << 30
"""Of a file's arrays in memory: days of recording."""
NO_CHOICE = -1
MAX_ENTROPY = float(np.finfo(np.float64).max)
"""Any finite number."""
MAX_BRANCH_LEVELS = 8
"""Beyond a few the draft's own words are as good as any."""
UNREADABLE = (OSError, ValueError, SyntaxError, tokenize.TokenError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What zipfile and NumPy raise on a damaged file."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """The arrays; see the module's text."""

    prompt_tokens: Ints
    sequence: Ints
    position: Ints
    token: Ints
    rank: Ints
    draft_entropy_nats: Floats
    target_entropy_nats: Floats
    token_log_prob: Floats
    choices: Ints
    log_probs: Floats
    branch_parent: Ints
    branch_token: Ints
    branch_entropy_nats: Floats
    branch_choices: Ints
    branch_log_probs: Floats
    vocabulary_size: int
    temperature: float
    seed: int
    target: str
    draft: str

    def sequences(self) -> Iterator[Ints]:
        """The rows of each text, by position."""
        for number in np.unique(self.sequence):
            rows = np.flatnonzero(self.sequence == number)
            yield rows[np.argsort(self.position[rows])]

    def prompts(self) -> list[tuple[int, ...]]:
        """Each text's prompt."""
        lengths = [int(self.position[rows[0]]) for rows in self.sequences()]
        return [tuple(part.tolist()) for part in np.split(self.prompt_tokens, np.cumsum(lengths)[:-1])]


_NAMES = tuple(field.name for field in fields(TokenTrace))
_TYPES = {field.name: field.type for field in fields(TokenTrace)}
_WIDE = ("choices", "log_probs", "branch_choices", "branch_log_probs")
_PER_BRANCH = tuple(name for name in _NAMES if name.startswith("branch_"))
_PER_TOKEN = tuple(name for name in _NAMES if _TYPES[name] in {"Ints", "Floats"} and name not in {"prompt_tokens", *_PER_BRANCH})


def write_token_trace(trace: TokenTrace, path: Path) -> None:
    """Write a trace: NumPy's archive, or, where the name ends so, its generated tokens as Parquet, which nothing here reads again.

    Raises ConfigError when the file cannot be written.
    """
    if path.suffix == ".parquet":
        write_parquet(_columns(trace), path)
        return
    arrays: dict[str, Any] = {name: np.asarray(getattr(trace, name)) for name in _NAMES}
    arrays = {name: array.astype(_stored(array.dtype)) if array.ndim else array for name, array in arrays.items()}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_whole(path, content.getvalue())


def read_token_trace(path: Path) -> TokenTrace:
    """Read and check a trace. Raises ConfigError naming the array and what is wrong with it."""
    arrays = _load(path)
    missing = [name for name in _NAMES if name not in arrays]
    if missing:
        raise ConfigError(f"{path} is no token trace: it has no {', '.join(missing)}; `wanspec trace` records one")
    trace = TokenTrace(**{name: _typed(name, arrays[name], path) for name in _NAMES})
    for name, what in _faults(trace):
        raise ConfigError(f"{path}: {name} {what}")
    return trace


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Half the width is enough for token ids and logarithms."""
    return {"f": np.dtype(np.float32), "i": np.dtype(np.int32)}.get(dtype.kind, dtype)


def _columns(trace: TokenTrace) -> dict[str, NDArray[Any]]:
    """One row for each generated token; `choice_1` and `log_prob_1` are of the draft's first choice."""
    columns = {name: getattr(trace, name) for name in _PER_TOKEN if name not in _WIDE}
    for rank in range(RANKS):
        columns |= {f"choice_{rank + 1}": trace.choices[:, rank], f"log_prob_{rank + 1}": trace.log_probs[:, rank]}
    columns = {name: column.astype(_stored(column.dtype)) for name, column in columns.items()}
    rows = len(trace.token)
    columns |= {name: np.full(rows, getattr(trace, name)) for name in ("vocabulary_size", "temperature", "seed")}
    return columns | {name: np.full(rows, getattr(trace, name), dtype=object) for name in ("target", "draft")}


def _load(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; name a token trace (.npz), which `wanspec trace` records")
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(member.file_size for member in archive.infolist())
        if size_bytes > MAX_BYTES:
            raise ConfigError(f"{path} holds {size_bytes} bytes, more than {MAX_BYTES}; give a shorter trace")
        with np.load(path, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in _NAMES if name in archive}
    except UNREADABLE as error:
        raise ConfigError(f"{path} cannot be read as a token trace (.npz), which `wanspec trace` records: {error}") from error


def _typed(name: str, array: NDArray[Any], path: Path) -> Any:  # noqa: ANN401  # what the field of that name takes
    kinds, dimensions = {"Ints": ("iu", 1), "Floats": ("f", 1), "int": ("iu", 0), "float": ("f", 0), "str": ("U", 0)}[str(_TYPES[name])]
    dimensions += name in _WIDE
    if array.dtype.kind not in kinds or array.ndim != dimensions:
        raise ConfigError(f"{path}: {name} is {array.dtype} in {array.ndim} dimensions, which no token trace has; record it anew")
    match kinds:
        case "U" | "iu" | "f" if not array.ndim:
            return array.item()
        case "f":
            return np.asarray(array, np.float64)
        case _:
            return np.asarray(array, np.int64)


def _faults(trace: TokenTrace) -> Iterator[tuple[str, str]]:
    """What cannot be, by array."""
    yield from _wrong_shapes(trace)
    yield from _wrong_constants(trace)
    size, rows = trace.vocabulary_size, len(trace.token)
    earlier = rows + np.arange(len(trace.branch_parent))
    rankings = {"log_probs": (trace.log_probs, trace.choices), "branch_log_probs": (trace.branch_log_probs, trace.branch_choices)}
    checks = (
        *((name, _are_within(getattr(trace, name), 0, size - 1), f"has a token outside the vocabulary of {size}") for name in _TOKENS),
        *((name, _are_choices(getattr(trace, name), size), f"has a token twice, or outside the vocabulary of {size}") for name in _CHOICES),
        *((name, _are_falling(*pair), "are not those of the choices, from the surest on") for name, pair in rankings.items()),
        *((name, np.all(getattr(trace, name) <= 0.0), "has a value above 0; it is a logarithm of a probability") for name in _LOGS),
        *((name, _are_within(getattr(trace, name), 0.0, MAX_ENTROPY), "has a value that is no entropy") for name in _ENTROPIES),
        ("rank", _are_within(trace.rank, 1, size), f"has a rank outside 1 to {size}"),
        ("position", np.all(trace.position >= 1), "has a position below 1, where no prompt could be"),
        ("branch_parent", np.all((trace.branch_parent >= 0) & (trace.branch_parent < earlier)), "names a context that comes later"),
        ("rank", _are_ranks(trace), "disagrees with choices"),
        ("sequence", _are_in_order(trace), "or position does not count the tokens of one text after the other"),
    )
    yield from ((name, what) for name, is_good, what in checks if not is_good)
    yield from _wrong_branches(trace)
    prompts = sum(int(trace.position[rows[0]]) for rows in trace.sequences())
    if prompts != len(trace.prompt_tokens):
        yield "prompt_tokens", f"has {len(trace.prompt_tokens)} tokens; the texts begin after {prompts}"


_TOKENS = ("prompt_tokens", "token", "branch_token")
_CHOICES = ("choices", "branch_choices")
_LOGS = ("token_log_prob", "log_probs", "branch_log_probs")
_ENTROPIES = ("draft_entropy_nats", "target_entropy_nats", "branch_entropy_nats")


def _wrong_shapes(trace: TokenTrace) -> Iterator[tuple[str, str]]:
    if not len(trace.token):
        yield "token", "is empty; record a trace with at least one token"
    for names, length in ((_PER_TOKEN, len(trace.token)), (_PER_BRANCH, len(trace.branch_parent))):
        for name in names:
            wanted = (length, RANKS) if name in _WIDE else (length,)
            if getattr(trace, name).shape != wanted:
                yield name, f"has the shape {getattr(trace, name).shape}; it is {wanted}"


def _wrong_constants(trace: TokenTrace) -> Iterator[tuple[str, str]]:
    if not RANKS < trace.vocabulary_size <= MAX_VOCABULARY:
        yield "vocabulary_size", f"is {trace.vocabulary_size}; it is from {RANKS + 1} to {MAX_VOCABULARY}"
    if not 0.0 <= trace.temperature <= MAX_TEMPERATURE:
        yield "temperature", f"is {trace.temperature:g}; it is from 0 to {MAX_TEMPERATURE:g}"


def _wrong_branches(trace: TokenTrace) -> Iterator[tuple[str, str]]:
    """Branches that meet each other or their text, or go too far."""
    rows, depths = len(trace.token), np.zeros(len(trace.token) + len(trace.branch_token), np.int64)
    pairs = set(zip(trace.branch_parent.tolist(), trace.branch_token.tolist(), strict=True))
    if len(pairs) < len(trace.branch_token) or any(parent < rows and trace.token[parent] == token for parent, token in pairs):
        yield "branch_token", "leads twice to the same context, or along the text"
    for number, parent in enumerate(trace.branch_parent.tolist(), start=rows):
        depths[number] = depths[parent] + 1
    if depths.max(initial=0) > MAX_BRANCH_LEVELS:
        yield "branch_parent", f"goes further than {MAX_BRANCH_LEVELS} levels away from its text"


def _are_ranks(trace: TokenTrace) -> bool:
    """Whether the target's token stands among the draft's choices where its rank says, or beyond them."""
    found = trace.choices == trace.token[:, None]
    return bool(np.all(np.where(trace.rank <= RANKS, found[np.arange(len(found)), np.minimum(trace.rank, RANKS) - 1], ~found.any(axis=1))))


def _are_in_order(trace: TokenTrace) -> bool:
    """Whether texts follow each other, and positions in each."""
    begins = np.diff(trace.sequence, prepend=-1) != 0
    return bool(np.all(np.diff(trace.sequence, prepend=-1)[begins] == 1) and np.all(begins[1:] | (np.diff(trace.position) == 1)))


def _are_within(values: Ints | Floats, least: float, most: float) -> bool:
    return bool(np.all((values >= least) & (values <= most)))


def _are_choices(values: Ints, size: int) -> bool:
    ordered = np.sort(values, axis=1)
    is_twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_CHOICE)
    return _are_within(values, NO_CHOICE, size - 1) and bool(np.all(values[:, 0] != NO_CHOICE)) and not is_twice.any()


def _are_falling(log_probs: Floats, choices: Ints) -> bool:
    is_one = choices != NO_CHOICE
    return bool(
        np.all(np.isfinite(log_probs) == is_one)
        and np.all(is_one[:, 1:] <= is_one[:, :-1])
        and np.all(np.diff(np.where(is_one, log_probs, -1e9)) <= 0.0)
    )
