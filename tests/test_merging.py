"""What batches merge, and what they never do."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from rowcast.events import Cursor, Event, Position
from rowcast.merging import merge


def event(position: int, type: str, payload: object, session: str = "s") -> Event:
    return Event(Cursor("00000000", Position(position)), type, session, None, None, 0.0, msgspec.json.encode(payload))


def delta(position: int, offset: int, text: str | None, message: str = "m", session: str = "s") -> Event:
    return event(position, "message.delta", {"message_id": message, "offset": offset, "delta": text}, session)


def job(position: int, type: str, id: str = "j", session: str = "s", **row: object) -> Event:
    return event(position, f"ingest.job.{type}", {"job": {"id": id, "status": "running", **row}}, session)


def positions(events: list[Event]) -> list[int]:
    return [event.position for event in merge(events)]


def test_deltas_that_follow_each_other_become_one() -> None:
    one, two = merge([delta(1, 0, "a"), delta(2, 0, "x", "n"), delta(3, 1, "bä"), delta(4, 3, "c")])
    assert (two.position, two.fields) == (4, {"message_id": "m", "offset": 0, "delta": "abäc"})
    assert (one.position, one.fields["delta"]) == (2, "x")


def test_of_updates_of_one_thing_the_last_stays() -> None:
    assert positions([job(1, "updated"), job(2, "updated", "k"), job(3, "updated")]) == [2, 3]
    assert positions([event(n, "task.progress", {"job": {"id": "j"}}) for n in (1, 2)]) == [2]
    row: dict[str, object] = {"key": {"id": 1}, "row": {}}
    assert positions([event(1, "orders.updated", row), event(2, "orders.updated", row), event(3, "bills.updated", row)]) == [2, 3]
    assert positions([event(1, "orders.updated", row), event(2, "orders.updated", {"key": {"id": 2}, "row": {}})]) == [1, 2]
    loose = {"key": {"status": "new"}, "row": {"status": "paid"}}  # no primary key: perhaps another row
    assert positions([event(1, "orders.updated", loose), event(2, "orders.updated", loose)]) == [1, 2]


def test_nothing_is_merged_across_an_end() -> None:
    assert positions([job(1, "updated"), job(2, "completed"), job(3, "updated")]) == [1, 2, 3]
    assert positions([delta(1, 0, "a"), job(2, "failed"), delta(3, 1, "b")]) == [1, 2, 3]
    done = event(2, "request_update", {"request_id": "r", "status": "done"})
    assert positions([job(1, "updated"), done, job(3, "updated")]) == [1, 2, 3]


def test_other_events_of_the_thing_keep_their_place() -> None:
    assert positions([job(1, "updated"), job(2, "created"), job(3, "updated"), job(4, "updated")]) == [1, 2, 4]
    replaced = event(2, "message.updated", {"message": {"id": "m", "text": "new"}})
    assert positions([delta(1, 0, "a"), replaced, delta(3, 3, "b"), delta(4, 4, "c")]) == [1, 2, 4]
    assert positions([event(n, "x.said", {"key": {"id": 1}}) for n in (1, 2)]) == [1, 2]


def test_no_text_is_left_out() -> None:
    text = {"message": {"id": "m", "text": "new"}}
    title = {"message": {"id": "m", "title": "x"}}
    assert positions([event(1, "message.updated", text), event(2, "message.updated", title)]) == [1, 2]
    assert positions([event(1, "message.updated", title), event(2, "message.updated", text)]) == [2]
    grown = {"message": {"id": "m"}, "offset": 0, "delta": "x"}
    assert positions([event(1, "message.updated", grown), event(2, "message.updated", title)]) == [1, 2]


def test_what_does_not_fit_is_left_alone() -> None:
    assert positions([delta(1, 0, "a"), delta(2, 5, "b")]) == [1, 2]
    assert positions([delta(1, 0, None), delta(2, 1, "b")]) == [1, 2]
    assert positions([delta(1, 0, "a"), delta(2, 1, "b", session="t")]) == [1, 2]
    assert positions([delta(1, 0, "a"), event(2, "message.delta", {"message_id": "m", "offset": 1, "delta": 5}), delta(3, 1, "b")]) == [
        1,
        2,
        3,
    ]
    for odd in ([], 1, None, {"job": []}, {"key": 3}, {"message_id": "m"}):
        assert positions([event(n, type, odd) for n, type in enumerate(["message.delta", "x.updated"] * 2)]) == [0, 1, 2, 3]
    assert merge([]) == []


def test_many_are_merged_quickly() -> None:
    """Not each again with all before it: that would be 800 million characters."""
    (whole,) = merge([delta(n, 20 * n, "x" * 20) for n in range(20_000)])
    assert whole.fields["delta"] == "x" * 400_000


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("mn"), st.text("aä🎯", min_size=1, max_size=3)),
        st.tuples(st.sampled_from("jk"), st.integers(0, 100)),
        st.tuples(st.sampled_from(["cut", "end"]), st.none()),
    ),
    max_size=30,
)


def played(events: list[Event]) -> dict[str, Any]:
    """What a client that applies each shows in the end."""
    shown: dict[str, Any] = {}
    for event in events:
        fields = event.fields
        if event.type == "message.delta":
            before = shown.get(fields["message_id"], "")
            assert fields["offset"] <= len(before)
            shown[fields["message_id"]] = before[: fields["offset"]] + fields["delta"]
        elif event.type == "message.updated":
            shown[fields["message"]["id"]] = fields["message"]["text"]
        else:
            shown[fields["job"]["id"]] = fields["job"]
    return shown


@given(STEPS)
def test_merged_or_not_a_client_ends_with_the_same(steps: list[tuple[str, Any]]) -> None:
    events: list[Event] = []
    texts = {"m": "", "n": ""}
    for n, (what, value) in enumerate(steps, 1):
        if what in texts:
            events.append(delta(n, len(texts[what]), value, what))
            texts[what] += value
        elif what == "cut":
            texts["m"] = texts["m"][:1]
            events.append(event(n, "message.updated", {"message": {"id": "m", "text": texts["m"]}}))
        else:
            events.append(job(n, "completed" if what == "end" else "updated", what, progress=value))
    merged = merge(events)
    assert played(merged) == played(events)
    assert [event.position for event in merged] == sorted(event.position for event in merged)
    if events:
        assert merged[-1].position == events[-1].position
    ends = [event for event in events if event.ends]
    assert [event for event in merged if event.ends] == ends
