"""Token traces as files."""

from __future__ import annotations

import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from tests.lab.simulation.test_tokens import token_trace

from wanspec.errors import ConfigError
from wanspec.lab.records.token_trace import TokenTrace, read_token_trace, write_token_trace


def test_a_trace_survives_the_file(tmp_path: Path) -> None:
    trace = token_trace()
    write_token_trace(trace, tmp_path / "trace.npz")
    again = read_token_trace(tmp_path / "trace.npz")
    for field in fields(TokenTrace):
        assert (
            np.allclose(getattr(again, field.name), getattr(trace, field.name))
            if field.type == "Floats"
            else np.array_equal(getattr(again, field.name), getattr(trace, field.name))
        )


def test_numpy_alone_opens_it(tmp_path: Path) -> None:
    write_token_trace(token_trace(), tmp_path / "trace.npz")
    with np.load(tmp_path / "trace.npz", allow_pickle=False) as archive:
        assert archive["token"].tolist() == [0, 1, 2, 3, 4]
        assert str(archive["target"]) == "t"


def test_as_parquet_it_has_a_row_for_each_token(tmp_path: Path) -> None:
    write_token_trace(token_trace(), tmp_path / "trace.parquet")
    columns = duckdb.read_parquet(str(tmp_path / "trace.parquet")).fetchnumpy()
    assert columns["token"].tolist() == [0, 1, 2, 3, 4]
    assert columns["choice_2"].tolist() == [50] * 5
    assert set(columns["draft"]) == {"d"}
    with pytest.raises(ConfigError, match="cannot be read as a token trace"):
        read_token_trace(tmp_path / "trace.parquet")


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    write_token_trace(token_trace(), tmp_path / "trace.npz")
    with np.load(tmp_path / "trace.npz") as archive:
        arrays = {name: archive[name] for name in archive if name not in {"rank", "branch_parent"}}
    np.savez(tmp_path / "less.npz", **arrays)
    with pytest.raises(ConfigError, match="it has no rank, branch_parent; `wanspec trace` records one"):
        read_token_trace(tmp_path / "less.npz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocabulary_size": 4}, "vocabulary_size is 4; it is from 9 to"),
        ({"vocabulary_size": 1 << 40}, "vocabulary_size is 1099511627776"),
        ({"vocabulary_size": 1.5}, "vocabulary_size is float64 in 0 dimensions"),
        ({"temperature": -1.0}, "temperature is -1; it is from 0 to 100"),
        ({"temperature": np.nan}, "temperature is nan"),
        ({"target": 3}, "target is int64 in 0 dimensions"),
        ({"token": np.array([0, 1, 2, 3, 100])}, "token has a token outside the vocabulary of 100"),
        ({"rank": np.array([1, 1, 1])}, "rank has the shape (3,); it is (5,)"),
        ({"token": np.array([[0, 1, 2]])}, "token is int32 in 2 dimensions"),
        ({"prompt_tokens": np.arange(19)}, "prompt_tokens has 19 tokens; the texts begin after 20"),
        ({"position": np.array([0, 1, 2, 10, 11])}, "position has a position below 1"),
        ({"rank": np.array([0, 1, 1, 1, 1])}, "rank has a rank outside 1 to 100"),
        ({"token_log_prob": np.full(5, 0.5)}, "token_log_prob has a value above 0"),
        ({"token_log_prob": np.full(5, np.nan)}, "token_log_prob has a value above 0"),
        ({"log_probs": np.full((5, 7), -1.0)}, "log_probs has the shape (5, 7); it is (5, 8)"),
        ({"choices": np.full((5, 8), -1)}, "choices has a token twice, or outside the vocabulary"),
        ({"choices": np.tile(np.array([0, 50, 50, 51, 52, 53, 54, 55]), (5, 1))}, "choices has a token twice"),
        ({"log_probs": np.full((5, 8), -np.inf)}, "log_probs are not those of the choices"),
        ({"log_probs": np.tile(-0.1 * np.arange(8, 0, -1), (5, 1))}, "log_probs are not those of the choices, from the surest on"),
        ({"rank": np.full(5, 99)}, "rank disagrees with choices"),
        ({"rank": np.full(5, 2)}, "rank disagrees with choices"),
        ({"position": np.array([10, 12, 13, 10, 11])}, "sequence or position does not count"),
        ({"sequence": np.array([0, 0, 0, 2, 2])}, "sequence or position does not count"),
        ({"branch_parent": np.array([0, 0]), "branch_token": np.array([50, 50])}, "branch_token leads twice to the same context"),
        ({"branch_token": np.array([0, 80])}, "branch_token leads twice to the same context, or along the text"),
        ({"draft_entropy_nats": np.full(5, np.nan)}, "draft_entropy_nats has a value that is no entropy"),
        ({"target_entropy_nats": np.full(5, -1.0)}, "target_entropy_nats has a value that is no entropy"),
        ({"branch_entropy_nats": np.full(2, np.inf)}, "branch_entropy_nats has a value that is no entropy"),
        ({"branch_parent": np.array([0, 6])}, "branch_parent names a context that comes later"),
        ({"branch_parent": np.array([-1, 0])}, "branch_parent names a context that comes later"),
        ({"branch_token": np.array([50, -2])}, "branch_token has a token outside the vocabulary"),
        ({"branch_choices": np.array([[-1, *range(7)], range(8)])}, "branch_choices has a token twice, or outside the vocabulary"),
    ],
)
def test_an_impossible_value_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_token_trace(replace(token_trace(), **change), tmp_path / "trace.npz")
    with pytest.raises(ConfigError) as caught:
        read_token_trace(tmp_path / "trace.npz")
    assert words in str(caught.value)


def test_branches_that_lead_far_away_are_refused(tmp_path: Path) -> None:
    deep: dict[str, Any] = {
        "branch_parent": np.array([0, *range(5, 104)]), "branch_token": np.full(100, 50), "branch_entropy_nats": np.ones(100),
        "branch_choices": np.tile(np.arange(8), (100, 1)), "branch_log_probs": np.tile(-0.1 * np.arange(1, 9), (100, 1)),
    }  # fmt: skip
    write_token_trace(replace(token_trace(), **deep), tmp_path / "trace.npz")
    with pytest.raises(ConfigError, match="branch_parent goes further than 8 levels"):
        read_token_trace(tmp_path / "trace.npz")


@pytest.mark.parametrize("content", [b"no array", b"\x93NUMPY\x01\x00\x76\x00" + b"(".ljust(118)])
def test_members_that_are_no_arrays_are_refused(tmp_path: Path, content: bytes) -> None:
    write_token_trace(token_trace(), tmp_path / "trace.npz")
    with zipfile.ZipFile(tmp_path / "trace.npz") as whole, zipfile.ZipFile(tmp_path / "bad.npz", "w") as bad:
        for name in whole.namelist():
            bad.writestr(name, content if name == "token.npy" else whole.read(name))
    with pytest.raises(ConfigError, match=r"cannot be read as a token trace|token is .* in 0 dimensions"):
        read_token_trace(tmp_path / "bad.npz")


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "pickled.npz", token=np.array([{}], dtype=object))
    for name in ("text.npz", "pickled.npz"):
        with pytest.raises(ConfigError, match="cannot be read as a token trace"):
            read_token_trace(tmp_path / name)
    with pytest.raises(ConfigError, match="there is no file"):
        read_token_trace(tmp_path / "none.npz")
    with pytest.raises(ConfigError, match="cannot write"):
        write_token_trace(token_trace(), tmp_path / "nowhere" / "trace.npz")
    with pytest.raises(ConfigError, match="cannot write"):
        write_token_trace(token_trace(), tmp_path / "nowhere" / "trace.parquet")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    write_token_trace(token_trace(), tmp_path / "trace.npz")
    whole = (tmp_path / "trace.npz").read_bytes()
    for place in range(0, len(whole), 97):
        (tmp_path / "trace.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_token_trace(tmp_path / "trace.npz")
        except ConfigError:
            continue


def test_a_small_file_of_very_many_rows_is_not_taken_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanspec.lab.records.token_trace.MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("token.npy", bytes(1 + (1 << 20)))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 12
    with pytest.raises(ConfigError, match="holds 1048577 bytes, more than 1048576; give a shorter trace"):
        read_token_trace(tmp_path / "bomb.npz")


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path) -> None:
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    header += b"{'descr': '<i4', 'fortran_order': False, 'shape': (4000000000000000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("token.npy", header + bytes(64))
    with pytest.raises(ConfigError, match="cannot be read as a token trace"):
        read_token_trace(tmp_path / "bomb.npz")
