from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wanspec.lab.openai_stream import MAX_LINE_BYTES, EventLines


@given(data=st.data())
def test_events_are_the_same_however_the_stream_is_cut(data: st.DataObject) -> None:
    stream = b'\xef\xbb\xbfdata:first\n: comment\r\ndata: {"a": 1}\r\n\r\ndata:2\n\ndata:\ndata: \n\nevent: x\rdata: [DONE]\r\rdata: rest'
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    reader, events = EventLines(), list[bytes]()
    for start, end in pairwise([0, *cuts, len(stream)]):
        events += reader.push(stream[start:end])
    assert events == [b"first", b'{"a": 1}', b"2", b"[DONE]"]
    assert reader.end() == [b"rest"]
    assert reader.end() == []


def test_a_stream_of_one_line_without_an_end_may_have_a_byte_order_mark() -> None:
    reader = EventLines()
    assert reader.push(b"\xef\xbb\xbfdata: [DONE]") == []
    assert reader.end() == [b"[DONE]"]


def test_a_line_without_end_is_not_gathered_for_ever() -> None:
    with pytest.raises(ValueError, match="a line of more than"):
        EventLines().push(b"x" * (MAX_LINE_BYTES + 1))
