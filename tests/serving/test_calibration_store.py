"""The calibration file: read again, shared, refused at once where it cannot be used, and bounded."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import msgspec
import pytest
from tests.workers import until

from wanspec.core.speculation.types import DraftChoices
from wanspec.errors import ConfigError
from wanspec.serving import calibration_store
from wanspec.serving.calibration_store import MAX_PAIRS, CalibrationStore, saved_regularly


def learn(store: CalibrationStore, *, draft: str = "d", target: str = "t") -> None:
    choices = DraftChoices(tokens=(1, 2), log_probs=(-0.5, -1.5), entropy_nats=0.8)
    store.book(draft=draft, target=target).at(0.0).observe(choices, 1)


def saved(path: Path, *, target: str = "t") -> bytes:
    """The bytes of a file with something in it."""
    store = CalibrationStore(path)
    learn(store, target=target)
    store.save()
    return path.read_bytes()


def test_what_was_learned_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    first = saved(path)
    again = CalibrationStore(path)
    again.save()
    assert path.read_bytes() == first
    assert set(again.book(draft="d", target="t").states) == {0.0}
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_file_counts_as_new(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.touch()
    assert saved(path).startswith(b'{"d for t"')


def test_a_link_stays_and_the_file_behind_it_is_written_with_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "real.json", tmp_path / "link.json"
    target.touch(mode=0o600)
    link.symlink_to(target)
    content = saved(link)
    assert link.is_symlink()
    assert target.read_bytes() == content
    assert target.stat().st_mode & 0o777 == 0o600


MANY_SAVES = """
import sys
from pathlib import Path
from wanspec.serving.calibration_store import CalibrationStore
store = CalibrationStore(Path(sys.argv[1]))
store.book(draft="d", target=sys.argv[2]).at(0.0)
for _ in range(200):
    store.save()
    CalibrationStore(Path(sys.argv[1]))
"""


def test_processes_that_share_a_file_neither_fail_nor_leave_half_of_one(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    children = [subprocess.Popen([sys.executable, "-c", MANY_SAVES, path, name]) for name in ("one", "other")]
    assert [child.wait(60) for child in children] == [0, 0]
    assert set(msgspec.json.decode(path.read_bytes())) & {"d for one", "d for other"}
    assert list(tmp_path.iterdir()) == [path]


def test_only_the_pairs_used_last_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    store = CalibrationStore(path)
    learn(store, target="ours")
    for number in range(MAX_PAIRS - 1):
        learn(store, target=f"stranger-{number}")
    learn(store, target="ours")
    learn(store, target="newcomer")
    store.save()
    pairs = list(msgspec.json.decode(path.read_bytes()))
    assert (len(pairs), pairs[-2:]) == (MAX_PAIRS, ["d for ours", "d for newcomer"])
    assert "d for stranger-0" not in pairs


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "is no calibration file"),
        (b"\xff", "is no calibration file"),
        (b'{"a for b": {"0": {"more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}}", "is no calibration file"),
        (b'{"a for b": {"hot": {"evidence": [], "tokens": []}}}', "a for b has a temperature that is no number"),
        (b'{"a for b": {"0": {"evidence": [], "tokens": []}}}', "a for b: a calibration of another shape"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        CalibrationStore(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(ConfigError, match="is no regular file; name a calibration file"):
            CalibrationStore(path)


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        CalibrationStore(tmp_path / "none" / "calibration.json")
    with pytest.raises(ConfigError, match="name a file in a folder that you can write"):
        CalibrationStore(Path("/proc/calibration.json"))  # where not even root makes files
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="symbolic links"):
        CalibrationStore(tmp_path / "loop")


def test_a_file_that_can_no_longer_be_written_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    store = CalibrationStore(folder / "calibration.json")
    shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"calibration.json: No such file"):
        store.save()


@pytest.mark.skipif(os.getuid() == 0, reason="root may read and write everything")
def test_what_this_user_may_not_see_or_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    saved(path)
    path.chmod(0o400)
    with pytest.raises(ConfigError, match="Permission denied"):
        CalibrationStore(path)
    tmp_path.chmod(0o000)
    try:
        with pytest.raises(ConfigError, match="Permission denied"):
            CalibrationStore(path)
    finally:
        tmp_path.chmod(0o700)


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_store, "SAVE_PERIOD_S", 0.01)


@pytest.mark.usefixtures("_often")
async def test_what_is_learned_is_saved_while_the_work_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    store, said = CalibrationStore(path), list[str]()

    def has(target: str) -> bool:
        return path.exists() and f"d for {target}" in msgspec.json.decode(path.read_bytes())

    async with saved_regularly(store, say=said.append):
        for target in ("one", "two"):
            learn(store, target=target)
            await until(partial(has, target))
    assert not said


@pytest.mark.usefixtures("_often")
async def test_a_failure_to_save_is_said_once_counted_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    store, said, failures = CalibrationStore(folder / "calibration.json"), list[str](), list[None]()
    learn(store)
    async with saved_regularly(store, say=said.append, count_failure=lambda: failures.append(None)):
        for times in (1, 2):
            folder.rename(tmp_path / "away")
            learn(store)
            failures.clear()
            await until(lambda: len(failures) >= 3)
            assert len(said) == times
            (tmp_path / "away").rename(folder)
            await until((folder / "calibration.json").exists)
            await until(lambda: (folder / "calibration.json").read_bytes() == store.encoded())
    assert said[0] == (
        f"what was learned is not kept: {folder / 'calibration.json'}: No such file or directory; "
        "name a file in a folder that you can write; it is tried again every 0.01 s"
    )


@pytest.mark.usefixtures("_often")
async def test_a_save_under_way_is_over_before_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, begun, goes_on = CalibrationStore(tmp_path / "calibration.json"), threading.Event(), threading.Event()
    write = store.write

    def slow(content: bytes) -> None:
        begun.set()
        assert goes_on.wait(20)
        write(content)

    learn(store)
    monkeypatch.setattr(store, "write", slow)
    async with saved_regularly(store, say=pytest.fail):
        await until(begun.is_set)
        learn(store, target="two")
        asyncio.get_running_loop().call_later(0.05, goes_on.set)
    assert goes_on.is_set()
    monkeypatch.undo()
    store.save()
    assert set(msgspec.json.decode((tmp_path / "calibration.json").read_bytes())) == {"d for t", "d for two"}
