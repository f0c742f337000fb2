from hypothesis import given
from hypothesis import strategies as st

from wanspec.core.protocol.events import Row, StepFinished
from wanspec.telemetry.facts import RecordedTokens
from wanspec.telemetry.recording import RowReader, RowWriter

ROWS = st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=4), st.lists(st.integers(0, 2), max_size=2)), max_size=3)


@given(steps=st.lists(ROWS, max_size=6))
def test_rows_are_read_back_whole(steps: list[list[tuple[list[int], list[int]]]]) -> None:
    writer, reader = RowWriter(), RowReader()
    for step in steps:
        rows = [Row(tokens=RecordedTokens([*before, *new]), num_new=len(new)) for before, new in step]
        read = reader.read(writer.write(StepFinished(rows=tuple(rows))) or {})
        assert read["rows"] == [{"tokens": [*before, *new], "new": len(new)} for before, new in step]


def test_of_a_row_that_goes_on_only_the_news_are_kept() -> None:
    writer = RowWriter()
    first = (Row(tokens=RecordedTokens((9,)), num_new=0), Row(tokens=RecordedTokens((1, 2, 3)), num_new=0))
    second = (Row(tokens=RecordedTokens((1, 2, 3, 4)), num_new=1),)
    writer.write(StepFinished(rows=first))
    assert writer.write(StepFinished(rows=second)) == {"kind": "step", "rows": [{"after": 1, "tokens": (4,), "new": 1}]}
