"""rowcast_writer.graphs: real graphs and chains with fake models, what becomes of them in the rows, and what a browser sees."""

import asyncio
import json
import operator
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from enum import Enum
from typing import Annotated, Any, TypedDict
from uuid import UUID

import asyncpg
import pytest
from langchain_core.callbacks import adispatch_custom_event
from langchain_core.language_models import FakeListLLM, FakeStreamingListLLM
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.language_models.llms import LLM
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, GenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, RetryPolicy, Send, interrupt
from pydantic import BaseModel
from rowcast_writer import JobCancelled, Lost
from rowcast_writer import Writer as RowWriter
from rowcast_writer.graphs import Recorded, record
from rowcast_writer.graphs.events import text_of
from rowcast_writer.graphs.recording import TRIED_AGAIN
from rowcast_writer.graphs.states import CUT, STATE, as_state, plain
from rowcast_writer.graphs.watch import Watch

from .pipelines import Broken, row
from .rig import Hub, Stream, Writer, until, until_sql

OLD = pytest.mark.filterwarnings("ignore:astream_events version='v1' is deprecated:langchain_core._api.LangChainDeprecationWarning")
BOTH = pytest.mark.parametrize("version", ["v2", pytest.param("v1", marks=OLD)])
QUICK = RetryPolicy(initial_interval=0.001, jitter=False)


class State(TypedDict, total=False):
    q: str
    n: int
    several: Annotated[list[Any], operator.add]


class Script(BaseChatModel):
    """Answers with these messages, in turns; streams what has a text, word by word, and then what else there is."""

    replies: list[Any]
    streams: bool = True
    gate: Any = None
    """Is waited for before the second word."""

    @property
    def _llm_type(self) -> str:
        return "script"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.replies.pop(0))])

    async def _astream(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> AsyncIterator[ChatGenerationChunk]:
        reply = self.replies.pop(0)
        for n, part in enumerate(reply.content.split(" ") if isinstance(reply.content, str) else reply.content):
            if n == 1 and self.gate:
                await self.gate.wait()
            if part == "BROKEN":
                raise Broken(part)
            content = part if n == 0 else " " + part if isinstance(part, str) else [part]
            yield ChatGenerationChunk(message=AIMessageChunk(content=content if isinstance(content, str | list) else [content]))
        calls = [{"name": c["name"], "args": json.dumps(c["args"]), "id": c["id"], "index": n} for n, c in enumerate(reply.tool_calls)]
        if calls:
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=calls))

    def _should_stream(self, **_: Any) -> bool:  # type: ignore[override]
        return self.streams


def says(*texts: str, **options: Any) -> Script:
    return Script(replies=[AIMessage(text) for text in texts], **options)


def graph_of(*nodes: Any, state: Any = State, saved: bool = False, **options: Any) -> Any:
    """One node after the other, each a function or (name, whatever runs)."""
    builder = StateGraph(state)
    last = START
    for node in nodes:
        name, runs = node if isinstance(node, tuple) else (node.__name__, node)
        builder.add_node(name, runs, **options)
        builder.add_edge(last, name)
        last = name
    return builder.compile(checkpointer=InMemorySaver() if saved else None)


def asks(model: Runnable[Any, Any], name: str = "answer") -> tuple[str, Any]:
    """A node that asks a model."""

    async def answer(state: State) -> dict[str, Any]:
        reply = await model.ainvoke(state.get("q") or "?")
        return {"q": reply if isinstance(reply, str) else reply.text}

    return name, answer


def started(graph: Any, version: str = "v2", input: Any = None, thread: str = "1", **options: Any) -> AsyncIterator[Any]:
    config = {"configurable": {"thread_id": thread}}
    events: AsyncIterator[Any] = graph.astream_events({"q": "?"} if input is None else input, config, version=version, **options)
    return events


async def given(*events: Any) -> AsyncIterator[Any]:
    for event in events:
        yield event


async def steps_of(db: asyncpg.Connection, job: UUID) -> list[tuple[str, str]]:
    return [tuple(found) for found in await db.fetch("SELECT name, status FROM job_step WHERE job_id = $1 ORDER BY sequence_number", job)]


async def states_of(db: asyncpg.Connection, job: UUID) -> list[Any]:
    found = await db.fetch("SELECT state FROM job_step WHERE job_id = $1 ORDER BY sequence_number", job)
    return [json.loads(one["state"]) if one["state"] else None for one in found]


async def text_of_row(db: asyncpg.Connection, made: Recorded) -> str:
    stored = await row(db, "message", made.message_id)
    assert stored["status"] == "completed"
    text: str = stored["text"]
    return text


@pytest.fixture
def session(runner: asyncio.Runner, writer: Writer) -> str:
    return runner.run(writer.session())


@pytest.fixture
def rows(runner: asyncio.Runner, database: str) -> Iterator[RowWriter]:
    made = RowWriter(database, interval=0.02, patience=10.0)
    yield made
    runner.run(made.close())


async def followed(hub: Hub, session: str) -> Stream:
    stream = await hub.follow(session)
    await stream.until("caught_up")
    return stream


# What a browser sees


async def test_what_a_browser_sees_of_an_agent(rows: RowWriter, session: str, hub: Hub, db: asyncpg.Connection) -> None:
    gate = asyncio.Event()
    graph = graph_of(asks(says("Hello big world", gate=gate)))
    stream = await followed(hub, session)
    running = asyncio.create_task(record(started(graph), rows, session, name="greeter"))
    seen = [await stream.next() for _ in range(4)]
    assert [event and event.type for event in seen] == [
        "agent.run.created",
        "agent.message.appended",
        "agent.step.updated",
        "message.delta",
    ]
    run, message, begun, delta = (event.data for event in seen if event)
    assert (run["run"]["name"], run["run"]["status"]) == ("greeter", "running")
    assert message["message"]["job_id"] == run["run"]["id"]
    assert (begun["step"]["name"], begun["step"]["status"]) == ("answer", "running")
    assert delta["delta"] == "Hello"
    gate.set()
    made = await running
    rest = {event.type: event.data for event in await stream.until("agent.run.completed")}
    assert set(rest) - {"message.delta"} == {"agent.step.updated", "message.completed", "agent.run.completed"}
    step = rest["agent.step.updated"]["step"]  # stored before the job's end, and maybe after the message's
    assert (step["status"], step["state"]) == ("completed", {"q": "Hello big world"})
    assert rest["message.completed"]["message"]["metadata"] == {}
    assert rest["agent.run.completed"]["run"]["result"] == {"q": "Hello big world", "several": []}
    assert await text_of_row(db, made) == made.text == "Hello big world"
    assert (str(made.job_id), made.output, made.interrupted) == (run["run"]["id"], {"q": "Hello big world", "several": []}, False)


async def test_what_a_browser_sees_of_a_workflow(rows: RowWriter, session: str, hub: Hub) -> None:
    """Also what a node knows before it has ended: the parts of its output, and what it says of its progress."""
    turn = asyncio.Semaphore(0)

    async def count(state: State) -> AsyncIterator[dict[str, Any]]:
        for n in range(2):
            await turn.acquire()
            yield {"n": n}
        await turn.acquire()

    async def tell(state: State) -> dict[str, Any]:
        await turn.acquire()
        await adispatch_custom_event("pages", 7)
        await turn.acquire()
        await adispatch_custom_event("found", {"id": 1})
        await turn.acquire()
        return {"q": "told"}

    stream = await followed(hub, session)
    running = asyncio.create_task(record(started(graph_of(count, tell)), rows, session, kind="workflow"))

    async def next_state(type: str) -> list[tuple[str, Any]]:
        turn.release()
        return [(event.data["nodeState"]["name"], event.data["nodeState"]["state"]) for event in await stream.expect(type)]

    await stream.expect("workflow.run.created", "agent.message.appended", "workflow.node.started")
    assert await next_state("workflow.node_state.updated") == [("count", {"n": 0})]
    assert await next_state("workflow.node_state.updated") == [("count", {"n": 1})]
    turn.release()
    told = {event.type: event.data["nodeState"] for event in [await stream.next(), await stream.next()] if event}
    assert set(told) == {"workflow.node.completed", "workflow.node.started"}  # in one transaction maybe, where what is new comes first
    assert (told["workflow.node.completed"]["name"], told["workflow.node.completed"]["state"]) == ("count", {"n": 1})
    assert told["workflow.node.started"]["name"] == "tell"
    assert await next_state("workflow.node_state.updated") == [("tell", {"pages": 7})]
    assert await next_state("workflow.node_state.updated") == [("tell", {"pages": 7, "found": {"id": 1}})]
    turn.release()
    rest = {event.type: event.data for event in await stream.until("workflow.run.completed")}
    assert set(rest) == {"workflow.node.completed", "message.completed", "workflow.run.completed"}
    assert rest["workflow.node.completed"]["nodeState"]["state"] == {"q": "told"}
    assert (await running).text == ""


async def test_what_runs_within_a_node_is_not_its_state(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    gate = asyncio.Event()

    async def helper(given: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"secret": 1}

    async def node(state: State) -> None:
        await RunnableLambda(helper).ainvoke(1)
        async for _ in RunnableLambda(helper).astream(1):
            pass
        await adispatch_custom_event("pages", 7)
        await gate.wait()

    running = asyncio.create_task(record(started(graph_of(node)), rows, session))
    await until_sql(db, "SELECT state IS NOT NULL FROM job_step")
    assert await states_of(db, await db.fetchval("SELECT id FROM job")) == [{"pages": 7}]
    gate.set()
    await running


# Steps


@BOTH
async def test_a_step_for_each_run_of_a_node_named_by_its_path(rows: RowWriter, session: str, db: asyncpg.Connection, version: str) -> None:
    async def inner(state: State) -> dict[str, Any]:
        return {"n": state.get("n", 0) + 1}

    below = graph_of(inner)

    async def calls(state: State) -> dict[str, Any]:
        both = await asyncio.gather(below.ainvoke({"n": 10}), below.ainvoke({"n": 20}))
        return {"several": sorted(one["n"] for one in both)}

    async def routed(state: State) -> None:
        """Whose routing function has its name."""

    def again(state: State) -> str:
        return "routed" if state["n"] < 3 else END

    again.__name__ = "routed"

    def count(state: State) -> dict[str, Any]:
        return {"n": state["n"] + 1}

    builder = StateGraph(State)
    builder.add_node("sub", below)
    builder.add_node("calls", calls)
    builder.add_node("routed", RunnableLambda(routed) | RunnableLambda(lambda _: {"q": "x"}))
    builder.add_node("count", count)
    for edge in ((START, "sub"), ("sub", "calls"), ("calls", "routed"), ("routed", "count")):
        builder.add_edge(*edge)
    builder.add_conditional_edges("count", again, ["routed", END])
    made = await record(started(builder.compile(), version, {"n": 0}), rows, session)
    names = ["sub", "sub/inner", "calls", "calls/inner", "calls/inner", "routed", "count", "routed", "count"]
    assert await steps_of(db, made.job_id) == [(name, "completed") for name in names]
    assert (await states_of(db, made.job_id))[:3] == [{"n": 1, "several": []}, {"n": 1}, {"several": [11, 21]}]


@BOTH
async def test_nodes_at_once_have_steps_of_their_own(rows: RowWriter, session: str, db: asyncpg.Connection, version: str) -> None:
    together = asyncio.Barrier(3)

    async def first(state: State) -> dict[str, Any]:
        return {"several": ["first"]}

    async def one(state: State) -> dict[str, Any]:
        await together.wait()
        return {"several": [state["n"]]}

    builder = StateGraph(State)
    builder.add_node(first)
    builder.add_node(one)
    builder.add_edge(START, "first")
    builder.add_conditional_edges("first", lambda _: [Send("one", {"n": n}) for n in range(3)], ["one"])
    made = await record(started(builder.compile(), version), rows, session)
    assert await steps_of(db, made.job_id) == [("first", "completed"), *[("one", "completed")] * 3]
    assert sorted(map(str, await states_of(db, made.job_id))) == sorted(str({"several": [one]}) for one in ("first", 0, 1, 2))


@BOTH
async def test_tasks_of_the_functional_api_are_nodes(rows: RowWriter, session: str, db: asyncpg.Connection, version: str) -> None:
    failures = [ConnectionError("once")]

    @task(retry_policy=QUICK)
    async def work(n: int) -> int:
        if failures:
            raise failures.pop()
        return n + 1

    @entrypoint()
    async def flow(n: int) -> int:
        return await work(n) + await work(n)

    made = await record(started(flow, version, 1), rows, session)
    first = "failed" if version == "v2" else "completed"  # version 1 tells of failures as of ends
    assert await steps_of(db, made.job_id) == [
        ("flow", "completed"),
        ("flow/work", first),
        ("flow/work", "completed"),
        ("flow/work", "completed"),
    ]
    assert (await states_of(db, made.job_id))[2:] == [{"output": 2}, {"output": 2}]
    assert made.output == 4 or version == "v1"
    assert (await row(db, "job", made.job_id))["result"] == ({"output": 4} if version == "v2" else made.output)


def agent(tools: list[BaseTool], *replies: AIMessage, **options: Any) -> Any:
    model = Script(replies=list(replies))

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState)
    builder.add_node("think", think)
    builder.add_node("tools", ToolNode(tools, handle_tool_errors=True))
    builder.add_edge(START, "think")
    builder.add_conditional_edges("think", tools_condition)
    builder.add_edge("tools", "think")
    return builder.compile(**options)


def calling(text: str, *names: str) -> AIMessage:
    return AIMessage(text, tool_calls=[{"name": name, "args": {"word": "row"}, "id": f"call-{name}"} for name in names])


async def test_tools_are_steps_of_the_node_that_calls_them(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    async def look(state: State) -> dict[str, Any]:
        return {"q": "found"}

    library = graph_of(look)

    @tool
    async def lookup(word: str) -> str:
        """Look a word up."""
        found: str = (await library.ainvoke({"q": word}))["q"]
        return found

    @tool
    def broken(word: str) -> str:
        """Break."""
        raise Broken("secret")

    graph = agent([lookup, broken], calling("Let me look.", "lookup", "broken"), AIMessage("It is a line of a table."))
    made = await record(started(graph, input={"messages": [("user", "What is a row?")]}), rows, session)
    assert sorted(await steps_of(db, made.job_id)) == [
        ("think", "completed"),
        ("think", "completed"),
        ("tools", "completed"),
        ("tools/broken", "failed"),
        ("tools/lookup", "completed"),
        ("tools/lookup/look", "completed"),
    ]
    steps = {
        found["name"]: found for found in await db.fetch("SELECT * FROM job_step WHERE job_id = $1 ORDER BY sequence_number", made.job_id)
    }
    assert json.loads(steps["tools/lookup"]["state"]) == {"type": "tool", "content": "found"}
    assert "secret" not in steps["tools/broken"]["error"]
    assert json.loads(steps["think"]["state"]) == {"messages": [{"type": "ai", "content": "It is a line of a table."}]}
    assert await text_of_row(db, made) == made.text == "Let me look.\n\nIt is a line of a table."


async def test_a_tool_alone_and_a_hidden_one(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    @tool
    async def lookup(word: str) -> str:
        """Look a word up."""
        return word * 2

    @tool
    async def secret(word: str) -> str:
        """Look a word up."""
        return word * 3

    chain = lookup | RunnableLambda(lambda found: {"word": found}) | secret.with_config(tags=["langsmith:hidden"])
    made = await record(started(chain, input={"word": "a"}), rows, session)
    assert await steps_of(db, made.job_id) == [("lookup", "completed")]
    assert made.output == "aaaaaa"
    assert (await row(db, "job", made.job_id))["result"] == {"output": "aaaaaa"}


async def test_a_node_that_hands_over_to_another_graph_has_ended(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    """LangGraph tells of no end of it."""
    gate = asyncio.Event()

    async def decide(state: State) -> Command[Any]:
        return Command(graph=Command.PARENT, goto="other", update={"q": "handed over"})

    async def other(state: State) -> Command[Any]:
        await gate.wait()
        return Command(update={"n": 1})

    builder = StateGraph(State)
    builder.add_node("sub", graph_of(decide), destinations=("other",))
    builder.add_node("other", other)
    builder.add_edge(START, "sub")
    running = asyncio.create_task(record(started(builder.compile()), rows, session))
    await until_sql(db, "SELECT count(*) = 2 FROM job_step WHERE status = 'completed'")
    gate.set()
    made = await running
    assert await steps_of(db, made.job_id) == [("sub", "completed"), ("sub/decide", "completed"), ("other", "completed")]
    assert (await states_of(db, made.job_id))[2] == {"n": 1}


async def test_a_failure_that_is_caught_fails_only_its_step(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    async def breaks(state: State) -> None:
        raise Broken("secret")

    below = graph_of(breaks)

    async def catches(state: State) -> dict[str, Any]:
        try:
            await below.ainvoke({"q": "?"})
        except Broken:
            return {"q": "caught"}
        return {}

    made = await record(started(graph_of(catches)), rows, session)
    assert await steps_of(db, made.job_id) == [("catches", "completed"), ("catches/breaks", "failed")]


async def test_without_states(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    async def counts(state: State) -> AsyncIterator[dict[str, Any]]:
        await adispatch_custom_event("pages", 7)
        yield {"n": 1}
        yield {"n": 2}

    made = await record(started(graph_of(counts)), rows, session, states=False)
    assert (await steps_of(db, made.job_id), await states_of(db, made.job_id)) == ([("counts", "completed")], [None])
    assert (await row(db, "job", made.job_id))["result"] is None
    assert made.output["n"] == 2


# Text


@BOTH
async def test_a_plain_chain_has_no_steps_and_its_text_is_there_once(
    rows: RowWriter, session: str, db: asyncpg.Connection, version: str
) -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("Hello big world")]))
    chain = ChatPromptTemplate.from_messages([("user", "{q}")]) | model | StrOutputParser()
    made = await record(started(chain, version), rows, session)
    assert await steps_of(db, made.job_id) == []
    assert await text_of_row(db, made) == made.text == made.output == "Hello big world"


class TextModel(LLM):
    @property
    def _llm_type(self) -> str:
        return "text"

    def _call(self, prompt: str, stop: Any = None, run_manager: Any = None, **_: Any) -> str:
        return "one two"

    async def _astream(self, prompt: str, stop: Any = None, run_manager: Any = None, **_: Any) -> AsyncIterator[GenerationChunk]:
        for text in ("one ", "two"):
            chunk = GenerationChunk(text=text)
            if run_manager:
                await run_manager.on_llm_new_token(text, chunk=chunk)
            yield chunk


PARTS = [
    {"type": "reasoning", "reasoning": "hidden thoughts"},
    {"type": "text", "text": "one "},
    {"type": "tool_call", "name": "f", "args": {}, "id": "1"},
    {"type": "text", "text": "two"},
]


@BOTH
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: says("one two"), id="chunks"),
        pytest.param(lambda: says("one two", streams=False), id="no chunks"),
        pytest.param(lambda: Script(replies=[AIMessage(PARTS)]), id="parts"),
        pytest.param(lambda: Script(replies=[AIMessage(PARTS)], streams=False), id="parts at the end"),
        pytest.param(lambda: FakeListChatModel(responses=["one two"]), id="letters"),
        pytest.param(lambda: FakeListLLM(responses=["one two"]), id="a plain one"),
        pytest.param(TextModel, id="a plain one with chunks"),
        pytest.param(lambda: FakeStreamingListLLM(responses=["one two"]), id="a plain one whose chunks are not told"),
        pytest.param(lambda: says("one two").with_fallbacks([says("never")]), id="fallbacks"),
        pytest.param(lambda: RunnableLambda(lambda _: "?") | says("one two"), id="a chain"),
    ],
)
@pytest.mark.parametrize("place", ["node", "chain"])
async def test_the_text_of_any_model_is_there_once(
    rows: RowWriter, session: str, db: asyncpg.Connection, version: str, model: Any, place: str
) -> None:
    runs = graph_of(asks(model())) if place == "node" else RunnableLambda(lambda given: given["q"]) | model()
    made = await record(started(runs, version), rows, session)
    assert await text_of_row(db, made) == made.text == "one two"


async def test_models_that_speak_at_once_are_not_mixed(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    gate, seen = asyncio.Event(), asyncio.Event()
    first, second = says("one two", gate=gate), says("uno dos tres", "fin")

    async def both(state: State) -> None:
        async def quick() -> None:
            await until(lambda: first.replies == [])
            await second.ainvoke("?")
            await second.ainvoke("?")
            gate.set()

        await asyncio.gather(first.ainvoke("?"), quick())
        await seen.wait()

    running = asyncio.create_task(record(started(graph_of(both)), rows, session, separator="|"))
    await until_sql(db, "SELECT text = 'one two|uno dos tres|fin' FROM message")  # before the node has ended
    seen.set()
    made = await running
    assert await text_of_row(db, made) == made.text == "one two|uno dos tres|fin"


async def test_a_model_inside_a_model_is_not_heard_twice(rows: RowWriter, session: str) -> None:
    outer = {"run_id": "1", "parent_ids": []}
    inner = {"run_id": "2", "parent_ids": ["1"]}
    said = {"data": {"chunk": AIMessageChunk("one")}}
    made = await record(
        given(
            {"event": "on_chat_model_start", **outer},
            {"event": "on_chat_model_start", **inner},
            {"event": "on_chat_model_stream", **inner, **said},
            {"event": "on_chat_model_stream", **outer, **said},
            {"event": "on_chat_model_end", **inner, "data": {"output": AIMessage("one")}},
            {"event": "on_chat_model_end", **outer, "data": {"output": AIMessage("one")}},
        ),
        rows,
        session,
    )
    assert made.text == "one"


@BOTH
async def test_whose_text_goes_into_the_message(rows: RowWriter, session: str, version: str) -> None:
    quiet = says("to nobody").with_config(tags=["nostream"])
    hidden = says("hidden in traces only").with_config(tags=["langsmith:hidden"])
    below = graph_of(asks(says("below"), "inner"))
    graph = graph_of(asks(quiet, "quiet"), asks(hidden, "hidden"), ("sub", below), asks(says("last"), "last"))

    def run(nodes: Any = None) -> Any:
        for model, text in ((quiet.bound, "to nobody"), (hidden.bound, "hidden in traces only")):
            model.replies[:] = [AIMessage(text)]
        return record(started(graph, version), rows, session, nodes=nodes, separator="|")

    assert (await run()).text == "hidden in traces only|below|last"


@BOTH
@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ("last", "last"),
        ({"sub"}, "below"),
        (["inner", "first"], "first|below"),
        ([], ""),
        ("first_and_last", ""),
        (None, "first|below|last"),
    ],
)
async def test_the_nodes_whose_text_is_wanted(rows: RowWriter, session: str, version: str, nodes: Any, text: str) -> None:
    below = graph_of(asks(says("below"), "inner"))
    graph = graph_of(asks(says("first"), "first"), ("sub", below), asks(says("last"), "last"))
    assert (await record(started(graph, version), rows, session, nodes=nodes, separator="|")).text == text


async def test_a_stream_that_was_filtered(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    made = await record(started(graph_of(asks(says("one two"))), include_types=["chat_model"]), rows, session)
    assert (made.text, made.output, await steps_of(db, made.job_id)) == ("one two", None, [])


async def test_events_that_came_as_json(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    """As LangGraph's server and LangServe send them: messages are dicts."""
    node = {
        "run_id": "2",
        "parent_ids": ["1"],
        "name": "answer",
        "tags": ["graph:step:1"],
        "metadata": {"langgraph_node": "answer", "langgraph_step": 1},
    }
    model = {"run_id": "3", "parent_ids": ["1", "2"], "name": "ChatModel", "tags": [], "metadata": {"langgraph_node": "answer"}}
    other = {**model, "run_id": "4"}
    whole = {"type": "ai", "content": [{"type": "text", "text": "whole"}], "id": "x"}
    made = await record(
        given(
            {"event": "on_chain_start", "run_id": "1", "name": "LangGraph", "data": {"input": None}},
            {"event": "on_chain_start", **node, "data": {}},
            {"event": "on_chat_model_start", **model, "data": {}},
            {"event": "on_chat_model_stream", **model, "data": {"chunk": {"type": "AIMessageChunk", "content": "Hel"}}},
            {
                "event": "on_chat_model_stream",
                **model,
                "data": {"chunk": {"type": "AIMessageChunk", "content": [{"type": "text", "text": "lo"}]}},
            },
            {"event": "on_chat_model_end", **model, "data": {"output": {"type": "ai", "content": "Hello"}}},
            {"event": "on_chat_model_start", **other, "data": {}},
            {"event": "on_chat_model_end", **other, "data": {"output": {"generations": [[{"text": "", "message": whole}]]}}},
            {"event": "on_something_new", "run_id": "9", "data": None},
            {"event": "on_chain_end", **node, "data": {"output": {"messages": [whole]}}},
            {"event": "on_chain_end", "run_id": "1", "name": "LangGraph", "data": {"output": {"answer": 42}}},
        ),
        rows,
        session,
        metadata={"trace_id": "t-1"},
    )
    assert (made.text, made.output) == ("Hello\n\nwhole", {"answer": 42})
    assert (await steps_of(db, made.job_id), await states_of(db, made.job_id)) == ([("answer", "completed")], [{"messages": [whole]}])
    assert (await row(db, "message", made.message_id))["metadata"] == {"trace_id": "t-1"}


async def test_events_of_an_old_langgraph(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    """As 0.2 tells of its own runs, and without places."""
    graph = {"run_id": "1", "name": "LangGraph", "parent_ids": [], "tags": [], "metadata": {}, "data": {}}
    start = {**graph, "run_id": "2", "name": "__start__", "parent_ids": ["1"], "tags": ["graph:step:0", "langsmith:hidden"]}
    node = {
        **graph,
        "run_id": "3",
        "name": "answer",
        "parent_ids": ["1"],
        "tags": ["graph:step:1"],
        "metadata": {"langgraph_node": "answer"},
    }
    write = {**node, "run_id": "4", "name": "ChannelWrite<answer>", "parent_ids": ["1", "3"], "tags": ["seq:step:2", "langsmith:hidden"]}
    starts = {**start, "metadata": {"langgraph_node": "__start__"}}
    events = [
        ("start", graph),
        ("start", starts),
        ("end", starts),
        ("start", node),
        ("start", write),
        ("end", write),
        ("end", node),
        ("end", graph),
    ]
    made = await record(given(*({"event": f"on_chain_{phase}", **run} for phase, run in events)), rows, session)
    assert await steps_of(db, made.job_id) == [("answer", "completed")]


async def test_nodes_of_a_subgraph_of_an_old_version_keep_their_texts(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    """There `checkpoint_ns` is that of the whole subgraph, so it does not tell that a node is tried again."""
    metadata = {"checkpoint_ns": "sub:1beed5e7"}
    events: list[Any] = [{"event": "on_chain_start", "run_id": "1", "name": "LangGraph"}]
    for n, name in enumerate(("one", "two"), 1):
        about = {"langgraph_node": name, "langgraph_step": n, **metadata}
        node = {"run_id": name, "parent_ids": ["1"], "name": name, "tags": [f"graph:step:{n}"], "metadata": about}
        model = {"run_id": f"model {n}", "parent_ids": ["1", name], "metadata": about, "data": {"output": AIMessage(name)}}
        events.append({"event": "on_chain_start", **node})
        events += [{"event": f"on_chat_model_{phase}", **model} for phase in ("start", "end")]
        events.append({"event": "on_chain_end", **node})
    made = await record(given(*events), rows, session, separator="|")
    assert await text_of_row(db, made) == "one|two"
    assert await steps_of(db, made.job_id) == [("one", "completed"), ("two", "completed")]


# Failures


class Closing:
    """Passes events on, and remembers being closed. Nobody but who reads it closes it."""

    def __init__(self, events: AsyncIterator[Any]) -> None:
        self._events = events
        self.closed = 0

    def __aiter__(self) -> "Closing":
        return self

    async def __anext__(self) -> Any:
        return await anext(self._events)

    async def aclose(self) -> None:
        self.closed += 1
        await self._events.aclose()  # type: ignore[attr-defined]


async def test_an_exception_fails_the_step_that_it_came_from(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    error = Broken("secret")
    waits = asyncio.Event()

    async def ok(state: State) -> None:
        waits.set()
        await asyncio.Event().wait()

    async def breaks(state: State) -> None:
        await waits.wait()
        raise error

    below = StateGraph(State)
    below.add_node(ok)
    below.add_node(breaks)
    below.add_edge(START, "ok")
    below.add_edge(START, "breaks")
    with pytest.raises(Broken) as raised:
        await record(started(graph_of(asks(says("so far")), ("sub", below.compile()))), rows, session)
    assert raised.value is error
    job = await db.fetchrow("SELECT * FROM job")
    assert job
    assert (job["status"], "secret" in job["error"]) == ("failed", False)
    assert sorted(await steps_of(db, job["id"])) == [
        ("answer", "completed"),
        ("sub", "failed"),
        ("sub/breaks", "failed"),
        ("sub/ok", "cancelled"),
    ]
    assert "secret" not in str(await db.fetch("SELECT error FROM job_step"))
    message = await db.fetchrow("SELECT * FROM message")
    assert message
    assert (message["status"], message["text"], "error" in json.loads(message["metadata"])) == ("failed", "so far", True)


async def test_an_exception_of_unknown_origin_fails_all_open_steps(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    async def events() -> AsyncIterator[Any]:
        for n in "12":
            yield {"event": "on_tool_start", "run_id": n, "name": n}
        raise Broken

    with pytest.raises(Broken):
        await record(events(), rows, session)
    assert sorted(await steps_of(db, await db.fetchval("SELECT id FROM job"))) == [("1", "failed"), ("2", "failed")]


@BOTH
async def test_a_node_that_is_tried_again(rows: RowWriter, session: str, db: asyncpg.Connection, version: str) -> None:
    """The failed try has a step of its own, and what was said in it is taken back."""
    model = says("first try", "second try")
    failures = [ConnectionError("once")]

    async def flaky(state: State) -> dict[str, Any]:
        text = (await model.ainvoke("?")).text
        if failures:
            raise failures.pop()
        return {"q": text}

    graph = graph_of(asks(says("before"), "before"), ("sub", graph_of(flaky)), retry_policy=QUICK)
    made = await record(started(graph, version), rows, session, separator="|")
    assert await text_of_row(db, made) == made.text == "before|second try"
    failed = "failed" if version == "v2" else "completed"  # version 1 tells of failures as of ends
    assert await steps_of(db, made.job_id) == [
        ("before", "completed"),
        ("sub", failed),
        ("sub/flaky", failed),
        ("sub", "completed"),
        ("sub/flaky", "completed"),
    ]
    if version == "v2":
        assert await db.fetchval("SELECT array_agg(DISTINCT error) FROM job_step WHERE status = 'failed'") == [TRIED_AGAIN]


async def test_a_model_that_is_tried_again(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    model = says("Hel BROKEN", "Hello again").with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    made = await record(started(graph_of(asks(model), asks(says("after"), "after"))), rows, session, separator="|")
    assert await text_of_row(db, made) == made.text == "Hello again|after"


async def test_what_a_model_said_before_it_failed_holds_nobody_up(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    """It has no end that is told, so that of its node counts."""
    gate = asyncio.Event()
    model = says("Hel BROKEN").with_fallbacks([says("Hello")])

    async def after(state: State) -> None:
        await gate.wait()

    running = asyncio.create_task(record(started(graph_of(asks(model), after)), rows, session, separator="|"))
    await until_sql(db, "SELECT text = 'Hel|Hello' FROM message")
    gate.set()
    assert (await running).text == "Hel|Hello"


async def test_the_same_outside_of_any_node_counts_at_the_end(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    model = says("Hel BROKEN").with_fallbacks([says("Hello")])

    async def answer(question: Any) -> Any:
        return await model.ainvoke("?")

    made = await record(started(RunnableLambda(answer)), rows, session, separator="|")
    assert await text_of_row(db, made) == made.text == "Hel|Hello"


# A human in the loop


def ask(state: State) -> dict[str, Any]:
    return {"q": interrupt({"question": "sure?"})}


@BOTH
@pytest.mark.parametrize(
    "options",
    [{}, {"stream_mode": "values"}, {"stream_mode": ["values", "updates"]}, {"stream_mode": "updates", "subgraphs": True}],
    ids=str,
)
@pytest.mark.parametrize("place", ["root", "subgraph"])
async def test_a_run_that_waits_for_a_human(
    rows: RowWriter, session: str, db: asyncpg.Connection, version: str, options: dict[str, Any], place: str
) -> None:
    nodes = [asks(says("Shall I?")), ask]
    graph = graph_of(*nodes, saved=True) if place == "root" else graph_of(("sub", graph_of(*nodes)), saved=True)
    made = await record(started(graph, version, **options), rows, session)
    assert made.interrupted
    message = await row(db, "message", made.message_id)
    assert (message["status"], message["text"], message["metadata"]) == ("completed", "Shall I?", {"interrupted": True})
    job = await row(db, "job", made.job_id)
    assert job["status"] == "completed"
    (asked,) = job["result"]["__interrupt__"]
    assert asked["value"] == {"question": "sure?"}
    names = ["answer", "ask"] if place == "root" else ["sub", "sub/answer", "sub/ask"]
    assert await steps_of(db, made.job_id) == [(name, "completed") for name in names]
    if version == "v2":
        assert (await states_of(db, made.job_id))[-1] == {"interrupted": True}
    again = await record(started(graph, version, Command(resume="yes"), **options), rows, session)
    assert (again.interrupted, again.text) == (False, "")
    assert (await row(db, "message", again.message_id))["metadata"] == {}


async def test_a_run_within_that_waits_is_the_business_of_what_it_runs_in(rows: RowWriter, session: str) -> None:
    made = await record(
        given(
            {"event": "on_chain_start", "run_id": "1"},
            {"event": "on_chain_stream", "run_id": "2", "parent_ids": ["1"], "data": {"chunk": {"__interrupt__": ["sure?"]}}},
            {"event": "on_chain_end", "run_id": "1", "data": {"output": "whole"}},
            {"event": "on_chain_end", "run_id": "2", "parent_ids": ["1"], "data": {"output": "part"}},
        ),
        rows,
        session,
    )
    assert (made.interrupted, made.output) == (False, "whole")


async def test_a_tool_that_waits_for_a_human_has_not_failed(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    @tool
    async def ask(word: str) -> str:
        """Ask."""
        return str(interrupt(word))

    graph = agent([ask], calling("Let me ask.", "ask"), AIMessage("Good."), checkpointer=InMemorySaver())
    made = await record(started(graph, input={"messages": [("user", "?")]}), rows, session)
    assert (made.interrupted, await steps_of(db, made.job_id)) == (
        True,
        [("think", "completed"), ("tools", "completed"), ("tools/ask", "completed")],
    )


async def test_a_run_that_stops_before_a_node(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    graph = graph_of(asks(says("one"), "one"), asks(says("two"), "two"), saved=True)
    made = await record(started(graph, interrupt_before=["two"]), rows, session)
    assert (made.interrupted, made.text) == (True, "one")
    assert (await row(db, "job", made.job_id))["result"]["__interrupt__"] == []


# The end of a job that somebody asks for


async def test_the_end_of_the_job_ends_the_run_while_it_waits(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    ended: list[str] = []

    async def waits(state: State) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(await db.fetchval("SELECT status FROM job"))

    events = Closing(started(graph_of(asks(says("so far")), waits)))
    running = asyncio.create_task(record(events, rows, session))
    await until_sql(db, "SELECT count(*) = 1 FROM job_step WHERE name = 'waits'")
    await db.execute("UPDATE job SET cancel_requested_at = now()")
    with pytest.raises(JobCancelled, match="was asked for"):
        await running
    assert running.cancelling() == 0
    assert (ended, events.closed) == (["running"], 1), "the graph ends before its rows do"
    job = await db.fetchrow("SELECT * FROM job")
    assert job
    assert (job["status"], await steps_of(db, job["id"])) == ("cancelled", [("answer", "completed"), ("waits", "cancelled")])
    message = await row(db, "message", await db.fetchval("SELECT id FROM message"))
    assert (message["status"], message["text"], message["metadata"]) == ("completed", "so far", {"cancelled": True})


async def test_the_end_of_the_job_is_looked_for_between_events(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    async def busy() -> AsyncIterator[Any]:
        for n in range(1000):  # and never waits
            if n == 3:
                job.cancelled.set()
            yield {"event": "on_custom_event", "name": "x", "run_id": "1", "data": n}
        raise AssertionError("nobody looked")

    async with rows.message(session) as message:
        with pytest.raises(JobCancelled):
            async with rows.job("agent") as job:
                events = Closing(busy())
                await record(events, rows, job=job, message=message)
    assert (await row(db, "job", job.id))["status"] == "cancelled"
    assert events.closed == 1


async def test_what_is_done_with_an_event_is_not_interrupted(rows: RowWriter) -> None:
    event = {"event": "on_custom_event"}
    with pytest.raises(JobCancelled):
        async with rows.job("agent") as job, Watch(job) as watch:
            stream = given(event, event)
            assert await watch.next(stream) == event
            job.cancelled.set()
            await asyncio.sleep(0.01)
            with pytest.raises(JobCancelled):
                await watch.next(stream)
            job.raise_if_cancelled()


class Stubborn:
    """Does not end at once when it is interrupted, or not as it should."""

    def __init__(self, gives: Any) -> None:
        self._gives = gives
        self.waits = asyncio.Event()

    def __aiter__(self) -> "Stubborn":
        return self

    async def __anext__(self) -> Any:
        try:
            self.waits.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if isinstance(self._gives, Exception):
                raise self._gives from None
            return self._gives


@pytest.mark.parametrize(
    "gives", [{"event": "on_chain_start", "run_id": "1"}, Broken(), StopAsyncIteration()], ids=["an event", "an error", "its end"]
)
async def test_a_stream_that_ends_otherwise_when_it_is_interrupted(rows: RowWriter, session: str, gives: Any) -> None:
    stream = Stubborn(gives)
    async with rows.message(session) as message:
        with pytest.raises(JobCancelled):
            async with rows.job("agent") as job:
                running = asyncio.create_task(record(stream, rows, job=job, message=message))
                await stream.waits.wait()
                job.cancelled.set()
                await running
    assert running.cancelling() == 0


async def test_a_task_that_is_cancelled_as_well_stays_cancelled(rows: RowWriter, session: str) -> None:
    async def waits(state: State) -> None:
        await asyncio.Event().wait()

    async with rows.message(session) as message:
        with pytest.raises(asyncio.CancelledError):
            async with rows.job("agent") as job:
                running = asyncio.create_task(record(started(graph_of(waits)), rows, job=job, message=message))
                await until(lambda: job._steps)
                job.cancelled.set()
                await asyncio.sleep(0)  # the watcher is told, and is before us
                running.cancel()
                await running
    assert running.cancelled()


async def test_a_cancelled_task_closes_the_stream_and_ends_all(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    async def waits(state: State) -> None:
        await asyncio.Event().wait()

    events = Closing(started(graph_of(waits)))
    running = asyncio.create_task(record(events, rows, session))
    await until_sql(db, "SELECT count(*) = 1 FROM job_step")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert events.closed == 1
    job = await db.fetchrow("SELECT * FROM job")
    assert job
    assert (job["status"], await steps_of(db, job["id"])) == ("cancelled", [("waits", "cancelled")])
    assert await db.fetchval("SELECT status FROM message") == "failed"


async def test_a_message_that_is_lost_ends_the_run(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    gate = asyncio.Event()
    events = Closing(started(graph_of(asks(says("one two three", gate=gate)))))
    running = asyncio.create_task(record(events, rows, session))
    await until_sql(db, "SELECT text = 'one' FROM message")
    await db.execute("UPDATE message SET status = 'failed'")
    gate.set()
    with pytest.raises(Lost):
        await running
    assert events.closed == 1
    assert await db.fetchval("SELECT status FROM job") == "failed"


# A job and a message of the caller's


async def test_what_is_given_is_not_ended(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    async with rows.job("workflow", session_id=session) as job, rows.message(session) as message:
        await message.write("First. ")
        made = await record(started(graph_of(asks(says("Second.")))), rows, job=job, message=message)
        assert (made.job_id, made.message_id, made.text) == (job.id, message.id, "Second.")
        await message.write(" Third.")
        await until_sql(db, "SELECT text = 'First. Second. Third.' FROM message")
        assert await db.fetchval("SELECT status FROM message") == "streaming"
        assert await db.fetchval("SELECT status FROM job") == "running"
    assert await steps_of(db, job.id) == [("answer", "completed")]
    assert await db.fetchval("SELECT count(*) FROM job") == 1


@pytest.mark.parametrize("own", ["job", "message"])
async def test_one_of_them_may_be_given(rows: RowWriter, session: str, db: asyncpg.Connection, own: str) -> None:
    async with rows.job("agent") as job, rows.message(session) as message:
        mine: dict[str, Any] = {"job": job} if own == "job" else {"message": message}
        made = await record(started(graph_of(asks(says("Hello")))), rows, session, **mine)
        table, other = ("message", "job") if own == "message" else ("job", "message")
        assert getattr(made, f"{own}_id") == (job.id if own == "job" else message.id)
        assert (await row(db, table, getattr(made, f"{table}_id")))["status"] in ("running", "streaming")
        assert (await row(db, other, getattr(made, f"{other}_id")))["status"] == "completed"
    if own == "job":
        assert (await row(db, "message", made.message_id))["job_id"] == job.id


@pytest.mark.parametrize("error", [Broken(), JobCancelled()], ids=lambda error: type(error).__name__)
async def test_an_exception_leaves_the_end_of_what_is_given_to_its_own_block(
    rows: RowWriter, session: str, db: asyncpg.Connection, error: Exception
) -> None:
    async def breaks(state: State) -> None:
        raise error

    async with rows.job("agent") as job, rows.message(session) as message:
        with pytest.raises(type(error)):
            await record(started(graph_of(breaks)), rows, job=job, message=message)
        await message.write("Let us go on.")
    assert (await row(db, "message", message.id))["status"] == "completed"
    assert (await row(db, "job", job.id))["status"] == "completed"
    assert await steps_of(db, job.id) == [("breaks", "failed" if isinstance(error, Broken) else "cancelled")]


# What is refused


async def test_what_cannot_be_recorded_is_refused_before_anything_is_written(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    with pytest.raises(ValueError, match="give a session_id"):
        await record(given(), rows)
    events = graph_of(asks(says("?"))).astream_events({"q": "?"}, version="v3")
    with pytest.raises(TypeError, match="are wanted, not coroutine"):
        await record(events, rows, session)
    events.close()
    assert await db.fetchval("SELECT count(*) FROM job") == 0


async def test_a_stream_of_something_else_fails_clearly(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    with pytest.raises(TypeError, match=r"it has \['method', 'params'\]"):
        await record(given({"method": "values", "params": {}}), rows, session)
    assert await db.fetchval("SELECT status FROM job") == "failed"


def test_neither_package_is_needed_to_import_it() -> None:
    program = "import sys, rowcast_writer.graphs; print([name for name in sys.modules if name.startswith(('lang', 'pydantic'))])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


# What is kept of a state


class Colour(Enum):
    RED = 1


class Odd:
    def __repr__(self) -> str:
        raise Broken


class Model(BaseModel):
    name: str
    parts: list[int] = []


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (None, None),
        ({"a": (1, 2.5, True, None), 3: {"x"}}, {"a": [1, 2.5, True, None], "3": ["x"]}),
        (
            [HumanMessage("hi", name="ann"), ToolMessage("yes", tool_call_id="1")],
            {"output": [{"type": "human", "content": "hi"}, {"type": "tool", "content": "yes"}]},
        ),
        (AIMessage([{"type": "text", "text": "hi"}]), {"type": "ai", "content": [{"type": "text", "text": "hi"}]}),
        (Command(update={"a": 1}, goto="x"), {"a": 1}),
        (Command(goto="x"), None),
        (Model(name="x", parts=[1]), {"name": "x", "parts": [1]}),
        ({"f": [float("nan"), float("inf")]}, {"f": ["nan", "inf"]}),
        ({"n": 2**63}, {"n": str(2**63)}),
        ({"n": 10**5000}, {"n": "<int: ValueError>"}),
        ({"e": Colour.RED, "o": Odd(), "c": Recorded}, {"e": "<Colour.RED: 1>", "o": "<Odd: Broken>", "c": repr(Recorded)}),
        ({"id": UUID(int=1)}, {"id": "00000000-0000-0000-0000-000000000001"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_state_is_json(value: Any, kept: Any) -> None:
    assert as_state(value) == kept
    json.dumps(as_state(value), allow_nan=False)


def endless(depth: int = 0) -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["again"] = [loop, loop]
    return loop


@pytest.mark.parametrize(
    "value",
    [
        {"text": "x" * 10**6},
        {str(n): "x" * 10 for n in range(10**5)},
        {"several": ["x" * 100] * 10**5},
        {"numbers": list(range(10**6))},
        {"x" * 10**6: 1},
        [[[[[[["x" * 9] * 9] * 9] * 9] * 9] * 9] * 9],
        endless(),
    ],
    ids=["text", "keys", "list", "numbers", "name", "nested", "endless"],
)
def test_a_state_is_bounded(value: Any) -> None:
    kept = json.dumps(as_state(value), ensure_ascii=False)
    assert len(kept) < 2 * STATE
    assert CUT in kept


def test_what_is_left_out_is_counted() -> None:
    kept = as_state({str(n): n for n in range(10**5)})
    assert kept
    assert kept[CUT] == 10**5 - (len(kept) - 1)
    assert len(kept) > 1000


async def test_a_state_that_the_database_could_not_hold(rows: RowWriter, session: str, db: asyncpg.Connection) -> None:
    async def odd(state: State) -> dict[str, Any]:
        return {"q": "a\0b\ud800c", "several": [float("nan"), Odd()]}

    made = await record(started(graph_of(odd)), rows, session)
    assert await states_of(db, made.job_id) == [{"q": "abc", "several": ["nan", "<Odd: Broken>"]}]


@pytest.mark.parametrize(
    "value", [None, 7, {}, {"generations": []}, {"generations": [[]]}, {"content": None}, [None, 1, {"text": 1}], object()]
)
def test_what_has_no_text(value: Any) -> None:
    assert text_of(value) == ""


def test_plain_never_raises() -> None:
    class Changing(dict[str, Any]):
        def items(self) -> Any:
            raise RuntimeError("changed during iteration")

    assert plain(Changing()) == "<Changing: RuntimeError>"
