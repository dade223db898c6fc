"""The page at /: what it listens to, and how it puts a text together."""

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from .rig import Hub, get

NODE = shutil.which("node")

Event = tuple[str, dict[str, Any]]

WHOLE = re.compile(r"'([a-z_]+(?:\.[a-z_]+)+|request_update)'")
BEGINNING = re.compile(r"'((?:[a-z_]+\.)+)'")
ENDINGS = {
    "ingest.job.": "created updated completed failed cancelled",
    "agent.run.": "created updated completed failed cancelled",
    "workflow.run.": "created updated completed failed cancelled",
    "task.": "created progress completed failed cancelled",
    "workflow.node.": "completed failed",
    "message.": "completed failed",
}
"""Of the types that the SQL composes, by their beginning."""


@pytest.fixture
def page(project_root: Path) -> str:
    return (project_root / "app" / "console" / "index.html").read_text()


@pytest.fixture
def captured(project_root: Path) -> set[str]:
    """The event types that the triggers' SQL can write."""
    sql = "\n".join(path.read_text() for path in (project_root / "alembic" / "sql").glob("*_event_v*.sql"))
    beginnings = set(BEGINNING.findall(sql))
    assert beginnings == ENDINGS.keys(), "the SQL composes other types than this test knows"
    return set(WHOLE.findall(sql)) | {beginning + ending for beginning in beginnings for ending in ENDINGS[beginning].split()}


def listed(page: str, name: str) -> list[str]:
    match = re.search(rf"^const {name} = \[(.*?)\];", page, re.DOTALL | re.MULTILINE)
    assert match
    return re.findall(r"'([^']+)'", match[1])


async def test_the_page_is_served(hub: Hub, page: str) -> None:
    status, headers, body = await get(f"{hub.url}/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert body.decode() == page


def test_it_listens_to_every_type(page: str, captured: set[str]) -> None:
    types = listed(page, "TYPES")
    assert len(captured) > 30
    assert captured - set(types) == set()
    assert len(types) == len(set(types))


def test_it_asks_nobody_else(page: str) -> None:
    assert set(re.findall(r"https?://[^\s'\"]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\bsrc=|@import|\bimport\b", page)


def play(page: str, *events: Event) -> dict[str, Any]:
    """What the page knows after these events, by the page's own code."""
    assert NODE
    functions = [re.search(rf"^function {name}\(.*?^}}", page, re.DOTALL | re.MULTILINE) for name in ("grow", "take")]
    source = "\n".join(match[0] for match in functions if match)
    program = f"""{source}
        const items = new Map();
        for (const [type, data] of {json.dumps(events)}) take(items, type, data);
        console.log(JSON.stringify([...items].map(([key, item]) => [key, {{ ...item, characters: item.text.length, text: item.text.join('') }}])));
    """
    ran = subprocess.run([NODE, "--input-type=module", "-e", program], capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def appended(text: str = "") -> Event:
    return "agent.message.appended", {"message": {"id": "a", "role": "assistant", "status": "streaming", "text": text}}


def delta(offset: int, delta: str) -> Event:
    return "message.delta", {"message_id": "a", "offset": offset, "delta": delta}


def changed(type: str, status: str, **payload: Any) -> Event:
    text = {"text": payload.pop("text")} if "text" in payload else {}
    return type, {"message": {"id": "a", "status": status, **text}, **payload}


node = pytest.mark.skipif(NODE is None, reason="no node")


@node
def test_offsets_count_code_points(page: str) -> None:
    text = "héllo 🎯👩‍🚀 用中文怎么说？🚀 end"
    cuts = [0, 7, 8, 12, 15, 21, len(text)]
    grown = [delta(a, text[a:b]) for a, b in pairwise(cuts)]
    item = play(page, appended(), *grown)["message a"]
    assert (item["text"], item["characters"], item["fault"]) == (text, len(text), None)


@node
def test_what_comes_again_changes_nothing(page: str) -> None:
    events = [appended("🎯"), delta(1, "用🚀"), delta(3, "文")]
    once = play(page, *events)
    assert once["message a"]["text"] == "🎯用🚀文"
    for start in range(3):
        assert play(page, *events, *events[start:]) == once


@node
def test_a_terminal_event_carries_the_rest(page: str) -> None:
    done = changed("message.completed", "completed", offset=2, delta="🚀!")
    item = play(page, appended("🎯用"), done, done)["message a"]
    assert (item["text"], item["row"]["status"]) == ("🎯用🚀!", "completed")


@node
def test_a_terminal_event_leaves_or_replaces_the_text(page: str) -> None:
    assert play(page, appended("🎯用"), changed("message.completed", "completed"))["message a"]["text"] == "🎯用"
    assert play(page, appended("🎯用"), changed("message.failed", "failed", text="文"))["message a"]["text"] == "文"
    assert play(page, appended("🎯用"), changed("message.updated", "streaming", text=""), delta(0, "🚀"))["message a"]["text"] == "🚀"


@node
def test_a_gap_is_a_fault_until_the_text_is_replaced(page: str) -> None:
    gap = [appended("🎯用"), delta(3, "文")]
    item = play(page, *gap)["message a"]
    assert (item["text"], item["fault"]) == ("🎯用", "gap: 1 missing at 2")
    assert play(page, *gap, changed("message.updated", "streaming", text="🎯用🚀文"))["message a"]["fault"] is None


@node
def test_a_message_that_had_begun_is_known_from_there_on(page: str) -> None:
    item = play(page, delta(5, "🚀"), delta(6, "文"))["message a"]
    assert (item["from"], item["text"], item["fault"]) == (5, "🚀文", None)
    item = play(page, changed("message.updated", "streaming"), delta(5, "🚀"))["message a"]
    assert (item["from"], item["text"], item["fault"]) == (5, "🚀", None)


@node
def test_a_text_too_long_for_an_event_is_unknown(page: str) -> None:
    item = play(page, appended("🎯"), ("message.delta", {"message_id": "a", "offset": 1, "delta": None}))["message a"]
    assert (item["from"], item["text"], item["fault"]) == (None, "", None)


@node
def test_jobs_and_requests_come_and_go(page: str) -> None:
    job = {"id": "j", "kind": "ingest", "status": "running", "message": "10 of 100 pages", "progress": 10}
    events: list[Event] = [
        ("ingest.job.created", {"job": job}),
        ("agent.run.updated", {"run": {**job, "id": "r", "kind": "agent"}}),
        ("request_update", {"request_id": "q", "status": "done", "sequence_number": 3}),
        ("agent.step.updated", {"step": {"id": "s", "job_id": "r"}}),
        appended(),
    ]
    known = play(page, *events)
    assert list(known) == ["job j", "job r", "request q", "message a"]
    assert known["job j"]["row"]["progress"] == 10
    deleted: list[Event] = [
        ("message.deleted", {"message": {"id": "a"}}),
        ("job.deleted", {"job": {"id": "j"}}),
        ("request.deleted", {"request_id": "q"}),
        ("message.deleted", {"message": {"id": "never seen"}}),
    ]
    assert list(play(page, *events, *deleted)) == ["job r"]
