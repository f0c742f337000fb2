from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import msgspec
import pytest
from tests.lab.measurement.study import PLACES, SERVICE_S, best_target, rtt_s, study
from tests.serving.server.chromium import CHROMIUM, chromium
from typer.testing import CliRunner

from wanspec.cli.application import app
from wanspec.errors import ConfigError
from wanspec.lab.measurement.analysis import TAIL
from wanspec.lab.measurement.findings import findings
from wanspec.lab.measurement.journal import read_lines
from wanspec.lab.measurement.merge import merge_files, merged
from wanspec.lab.measurement.report import StudyReport, make_report, write_page
from wanspec.lab.measurement.rows import Header, Line, Note, RequestRow, RttRow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three days in which eu-west-2 is busy in the afternoon, and us-east-1 has a bad tail."""
    return study(tmp_path_factory.mktemp("study"), diurnal="eu-west-2", bad_tail="us-east-1", runs=4, interval_s=1800.0)


@pytest.fixture(scope="module")
def made(files: list[Path]) -> StudyReport:
    return make_report(files)


@pytest.fixture(scope="module")
def page(made: StudyReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(made, tmp_path_factory.mktemp("report"))


def answer(made: StudyReport, question: str) -> str:
    return next(finding.answer for finding in made.findings if question in finding.question)


def test_the_round_trips_are_recovered_from_connect_times(made: StudyReport) -> None:
    for (probe, target), cell in made.analysis.cells.items():
        assert cell.connect[0.5].value == pytest.approx(rtt_s(probe, target), rel=0.05)
        assert cell.connect[0.5].low <= cell.connect[0.5].value <= cell.connect[0.5].high
    assert re.search(r"rank correlation with connect times, over 9 pairs, is 0\.[6-9]", answer(made, "distance"))


def test_the_hours_of_a_busy_region_are_recovered_in_its_local_time(made: StudyReport) -> None:
    diurnal = made.analysis.diurnal
    assert {target for target in PLACES if diurnal[target].p < 0.05} == {"eu-west-2"}
    assert diurnal["eu-west-2"].peak_hour == pytest.approx(15, abs=1.5)
    hours = made.analysis.cells["eu-west-2", "eu-west-2"].hours
    assert hours[15][0.5].value > 1.3 * hours[4][0.5].value
    assert hours[4][0.5].value == pytest.approx(SERVICE_S, rel=0.2)
    assert answer(made, "hour of the day").startswith("eu-west-2 is diurnal")


def test_the_region_with_the_bad_tail_is_named_and_the_best_tail_from_there_is_abroad(made: StudyReport) -> None:
    assert answer(made, "heavy tail").startswith("Seen from where it is home: us-east-1 (p95")
    assert "eu-west-2 (p95" not in answer(made, "heavy tail")
    assert best_target(made.analysis, "us-east-1", 0.5) == "us-east-1"
    assert best_target(made.analysis, "us-east-1", TAIL) == "eu-west-2"
    assert "From 1 of 3 probes the best p95 is surely abroad" in answer(made, "tail worse at home")
    assert "From 0 of 3 probes the best p50 is surely abroad" in answer(made, "median?")
    assert "not the network" in answer(made, "network or the queue")


def test_inter_token_latency_and_problems_are_counted(made: StudyReport) -> None:
    assert made.analysis.cells["us-east-1", "us-east-1"].itl[0.5].value == pytest.approx(0.02, rel=0.01)
    throttled = sum(pair.throttled for pair in made.analysis.samples.pairs.values())
    assert throttled
    assert f"{throttled} were throttled" in answer(made, "failed")
    assert made.warnings == ("9 requests were due and not sent (0.2 %); the reasons are in the notes below.",)


def test_the_same_files_give_the_same_report(made: StudyReport, files: list[Path]) -> None:
    again = make_report(list(reversed(files)))
    assert again.findings == made.findings


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> StudyReport:
    """A few hours, in which one of the probes is where no target is."""
    paths = study(tmp_path_factory.mktemp("small"), days=0.25, runs=2, interval_s=1800.0)
    text = paths[0].read_text("utf-8").replace('"probe_region":"us-east-1"', '"probe_region":"zurich"')
    paths[0].write_text(text.replace('"probe":"us-east-1"', '"probe":"campus"').replace("study/us-east-1", "study/campus"), "utf-8")
    return make_report(paths)


def test_the_target_nearest_to_a_probe_without_a_home_is_called_so_and_not_framed(small: StudyReport, tmp_path: Path) -> None:
    said = answer(small, "median?")
    assert "From 0 of 2 probes the best p50 is surely abroad." in said
    assert "of 1 probes without a target at home the best p50 is surely not at the nearest target." in said
    assert re.search(r"From campus, (us-east-1 \(the nearest\) has the best|.* below that of us-east-1, its nearest)", said)
    assert not small.analysis.is_at_home("campus", "us-east-1")
    assert small.analysis.is_at_home("eu-west-2", "eu-west-2")
    text = write_page(small, tmp_path).read_text("utf-8")
    assert "us-east-1 (the nearest)" in text
    assert text.count('class="home"') == 2 * len(re.findall("<tr><th>campus", text))


def test_what_too_few_requests_lie_beyond_is_left_out_and_said_to_be(small: StudyReport, tmp_path: Path) -> None:
    page = write_page(small, tmp_path)
    assert {path.stem for path in page.parent.glob("ttft-*.png")} == {"ttft-p50"}
    assert "of each pair, p90 takes 30, p95 takes 60, p99 takes 300." in page.read_text("utf-8")
    assert answer(small, "network or the queue").startswith("Too few requests to say: it goes by p95")


def test_a_correlation_of_a_few_pairs_says_nothing(small: StudyReport) -> None:
    few = {key: cell for key, cell in small.analysis.cells.items() if key[0] != "ap-northeast-1" and key[1] != "ap-northeast-1"}
    with_few = findings(replace(small.analysis, cells=few))
    assert with_few[0].answer.startswith("There are too few pairs to say: their rank correlation, over 4, is")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_loads_nothing_and_what_others_wrote_is_text(page: Path) -> None:
    text = page.read_text()
    tags = Tags(text).tags
    assert {tag for tag, _ in tags} & {"script", "link", "iframe", "b"} == set()
    sources = [attributes[name] for _, attributes in tags for name in ("src", "href") if name in attributes]
    assert len(sources) == 8
    assert all(str(source).startswith("data:image/png;base64,") for source in sources)
    assert "&lt;b&gt;no runner was there&lt;/b&gt;" in text
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in page.parent.glob("*.png"))
    assert len(list(page.parent.glob("*.png"))) == 8


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
async def test_a_browser_shows_it_without_a_complaint(page: Path, tmp_path: Path) -> None:
    async with chromium(tmp_path) as browser:
        await browser.go(page.as_uri())
        assert await browser.look("[...document.images].every(image => image.complete && image.naturalWidth > 300)")
        assert await browser.look("document.querySelectorAll('dt').length") == 7
        assert not browser.problems


def test_files_of_many_hosts_become_one_of_parquet_with_the_same_report(made: StudyReport, files: list[Path], tmp_path: Path) -> None:
    number, _ = merge_files([*files, files[0]], tmp_path / "all.parquet")
    assert number == 3 * 3 * 144 * 4
    again = make_report([tmp_path / "all.parquet", files[1]])
    assert again.findings == made.findings
    assert again.warnings == made.warnings


def test_rows_survive_parquet_field_by_field(files: list[Path], tmp_path: Path) -> None:
    merge_files(files[:1], tmp_path / "one.parquet")
    with merged([tmp_path / "one.parquet"]) as found:
        names = [field.name for field in msgspec.structs.fields(RequestRow)]
        stored = {str(row[0]): dict(zip(names, row, strict=True)) for row in found.database.execute("SELECT * FROM requests").fetchall()}
    rows = [line for line in read_lines(files[0]) if isinstance(line, RequestRow)]
    assert len(stored) == len(rows)
    assert all(stored[row.id] == {name: getattr(row, name) for name in names} for row in rows)


def test_two_different_rows_of_one_id_are_refused(files: list[Path], tmp_path: Path) -> None:
    row = next(line for line in read_lines(files[0]) if isinstance(line, RequestRow))
    (tmp_path / "other.jsonl").write_bytes(msgspec.json.encode(msgspec.structs.replace(row, connect_s=9.0)) + b"\n")
    with pytest.raises(ConfigError, match=re.escape(f"request {row.id} has two different rows; two hosts ran as one probe")):
        merge_files([files[0], tmp_path / "other.jsonl"], tmp_path / "all.parquet")


def test_files_that_are_none_of_ours_are_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"kind": "note", "at_s": 1, "probe": "p", "event": "disk", "reason": ""}\n{"kind": "pigeon"}\n')
    with pytest.raises(ConfigError, match=r"a.jsonl, line 2 is none of ours: Invalid value 'pigeon'"):
        make_report([tmp_path / "a.jsonl"])
    (tmp_path / "a.parquet").write_text("PAR1 no")
    with pytest.raises(ConfigError, match=r"a.parquet: .*; give files that"):
        make_report([tmp_path / "a.parquet"])
    with pytest.raises(ConfigError, match="no such file"):
        make_report([tmp_path / "b.parquet"])
    with pytest.raises(ConfigError, match="No such file"):
        make_report([tmp_path / "b.jsonl"])
    (tmp_path / "c.jsonl").write_bytes(msgspec.json.encode(Note(at_s=0.0, probe="p", event="disk", reason="")) + b"\n")
    with pytest.raises(ConfigError, match="these files have no requests"):
        make_report([tmp_path / "c.jsonl"])


def test_a_single_round_is_reported_without_intervals_or_tests(files: list[Path], tmp_path: Path) -> None:
    rows = [line for line in read_lines(files[0]) if isinstance(line, RequestRow)][:12]
    (tmp_path / "few.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    made = make_report([tmp_path / "few.jsonl"])
    assert "There are only 1 rounds: too few for intervals and tests, which are left out." in made.warnings
    assert answer(made, "hour of the day").startswith("The study is too short")
    cell = made.analysis.cells["us-east-1", "us-east-1"]
    assert list(cell.ttft) == [0.5]
    assert math.isnan(cell.ttft[0.5].low)


def test_a_matrix_of_round_trips_is_merged_as_lines(tmp_path: Path) -> None:
    row = RttRow(id="a/b/1", probe="a", peer="b", host="h", port=1, address="", at_s=1.0, dns_s=None, connect_s=0.01)
    other = msgspec.structs.replace(row, id="b/a/1", probe="b", peer="a")
    for name, lines in (("a", [row]), ("b", [other, row])):
        (tmp_path / f"{name}.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    assert merge_files([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "rtts.jsonl") == (0, 2)
    assert list(read_lines(tmp_path / "rtts.jsonl")) == [row, other]


def rewritten(path: Path, out: Path, kind: type[Line], **fields: object) -> Path:
    """The same file, all lines of a kind with other values, whatever those may be."""
    lines = [msgspec.to_builtins(line) | (fields if isinstance(line, kind) else {}) for line in read_lines(path)]
    out.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return out


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (Note, {"at_s": 1e300}, "at_s"),
        (Note, {"at_s": -62_135_596_801.0}, "at_s"),
        (RequestRow, {"round_at_s": 253_402_300_800.0}, "round_at_s"),
        (RequestRow, {"round_at_s": -1.0}, "round_at_s"),
        (RequestRow, {"prompt_tokens": 2**63}, "give files that"),
        (Header, {"places": {"target:us-east-1": ["x", "Nowhere/" + "x" * 5000]}}, "has the time zone"),
        (Header, {"places": {"target:us-east-1": ["x", "Nowhere/No"]}}, "has the time zone 'Nowhere/No'"),
    ],
)
def test_a_file_of_somebody_who_means_harm_is_refused(kind: type[Line], fields: dict[str, object], words: str, tmp_path: Path) -> None:
    path = rewritten(study(tmp_path, days=0.1)[0], tmp_path / "bad.jsonl", kind, **fields)
    with pytest.raises(ConfigError, match=words) as raised:
        make_report([path])
    assert len(str(raised.value)) < 500


def test_times_that_no_calendar_has_are_refused_in_parquet_too(tmp_path: Path) -> None:
    merge_files(study(tmp_path, days=0.1)[:1], tmp_path / "good.parquet")
    with duckdb.connect() as database:
        database.execute(
            "COPY (SELECT * REPLACE (1e300 AS round_at_s) FROM read_parquet(?)) TO '"
            + str(tmp_path / "bad.parquet")
            + "' (FORMAT parquet)",
            [str(tmp_path / "good.parquet")],
        )
    with pytest.raises(ConfigError, match="no calendar"):
        make_report([tmp_path / "bad.parquet"])


def test_round_trips_of_a_stranger_are_text_on_the_terminal(tmp_path: Path) -> None:
    row = RttRow(id="a", probe="[/x]", peer="[bold]b", host="h", port=1, address="", at_s=1.0, dns_s=None, connect_s=0.1, problem="[/red]")
    path = tmp_path / "rtt.jsonl"
    path.write_bytes(msgspec.json.encode(row) + b"\n")
    shown = CliRunner().invoke(app, ["measure", "rtt", "--show", str(path)])
    assert shown.exit_code == 0
    assert "[/x]" in shown.output
    assert "[bold]b" in shown.output
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(row, peer="\x1b[2J")) + b"\n")
    assert CliRunner().invoke(app, ["measure", "rtt", "--show", str(path)]).exit_code == 2


def test_time_between_tokens_is_of_those_that_were_streamed_and_the_report_says_what_was_not(tmp_path: Path) -> None:
    """Each answer streams four tokens, 20 ms apart; targets differ in what they count."""
    (path, *_) = study(tmp_path, days=0.5)
    counts: dict[str, dict[str, object]] = {
        "us-east-1": {"output_tokens": 104, "reasoning_tokens": 100, "streamed_tokens": 4, "misfit": "kept back"},
        "eu-west-2": {"output_tokens": 104, "streamed_tokens": None, "misfit": "does not fit"},
        "ap-northeast-1": {"output_tokens": None, "streamed_tokens": None},
    }
    lines = [
        msgspec.structs.replace(line, **counts[line.target]) if isinstance(line, RequestRow) and line.status == "ok" else line
        for line in read_lines(path)
    ]
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    made = make_report([path])
    itl = {target: cell.itl for (_, target), cell in made.analysis.cells.items()}
    assert itl["us-east-1"][0.5].value == pytest.approx(0.02, rel=0.01)
    assert itl["ap-northeast-1"][0.5].value == pytest.approx(0.02, rel=0.01)
    assert itl["eu-west-2"] == {}
    said = "\n".join(made.warnings)
    assert re.search(r"eu-west-2: the server's count does not fit what it streamed in (\d+) of \1 answers", said)
    assert re.search(r"us-east-1: (\d+) of \1 answers have thoughts that were counted and not streamed", said)
    assert re.search(r"ap-northeast-1: the server did not count the tokens of (\d+) of \1 answers", said)


def test_a_file_that_an_editor_gave_a_mark_and_blank_lines_is_read(files: list[Path], tmp_path: Path) -> None:
    first = list(read_lines(files[0]))[:3]
    edited = tmp_path / "edited.jsonl"
    edited.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(msgspec.json.encode(line) for line in first) + b"\r\n")
    assert list(read_lines(edited)) == first
