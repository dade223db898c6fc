"""A make-believe LLM pipeline. It imports nothing of the hub: it writes rows, as any program would."""

import asyncio
import json
import os
import random
from contextlib import suppress
from hashlib import sha256
from itertools import count
from uuid import UUID

import asyncpg

PROJECT = UUID("00000000-0000-4000-8000-00000000dada")
SESSIONS = [UUID(f"00000000-0000-4000-8000-00000000000{n}") for n in (1, 2, 3)]

QUESTIONS = [
    "What does a trigger cost?",
    "Why not just pg_notify?",
    "And if my browser reconnects?",
    "Können Sie das auf Deutsch?",
    "用中文怎么说？",
]
ANSWERS = [
    "A statement trigger with transition tables turns a write of ten thousand rows into one INSERT of ten thousand outbox rows. "
    "The row you wrote and the event that tells of it commit together, or not at all. 🎯",
    "A transaction that notifies takes one lock of the whole cluster when it commits, so commits stand in line. "
    "Here the sequencer notifies; your writers only ring a bell, and when it is busy they do not even do that. 🔔",
    "It sends the id of the last event that it saw. The log is read after that position, then it is live again: nothing is missing, "
    "nothing comes twice, and this very sentence survives a kill -9 of the process that streams it. ♻️",
    "Natürlich: Die Wahrheit steht im Protokoll, eine Benachrichtigung ist nur ihre schnelle Abschrift. "
    "Geht sie verloren, kostet das Zeit, nie ein Ereignis. 🧭",
    "写入一行，提交，浏览器立刻看到。位置没有空隙，断线之后从上一个位置继续。🚀",
]
STAGES = ["reading", "splitting", "embedding", "indexing"]


async def main() -> None:
    while True:
        try:
            pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=0, max_size=3)
            async with pool:
                await prepare(pool)
                async with asyncio.TaskGroup() as group:
                    group.create_task(converse(pool, SESSIONS[0], 0.03))
                    group.create_task(converse(pool, SESSIONS[1], 0.08))
                    group.create_task(ingest(pool, SESSIONS[2]))
        except* (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await asyncio.sleep(1)


async def prepare(pool: asyncpg.Pool) -> None:
    await pool.execute("INSERT INTO project (id, name) VALUES ($1, 'demo') ON CONFLICT DO NOTHING", PROJECT)
    for session in SESSIONS:
        await pool.execute(
            "INSERT INTO session (id, project_id, owner_id) VALUES ($1, $2, 'demo') ON CONFLICT DO NOTHING", session, PROJECT
        )
    # What an earlier run left unfinished.
    await pool.execute("UPDATE message SET status = 'failed' WHERE status = 'streaming' AND session_id = ANY($1)", SESSIONS)
    await pool.execute(
        "UPDATE job SET status = 'failed', error = 'the pipeline ended' WHERE status = 'running' AND session_id = ANY($1)", SESSIONS
    )
    await pool.execute(
        "UPDATE request SET status = 'error', error = 'the pipeline ended' WHERE status = 'in_progress' AND session_id = ANY($1)", SESSIONS
    )


async def converse(pool: asyncpg.Pool, session: UUID, pause: float) -> None:
    for turn in count(random.randrange(len(ANSWERS))):
        question, answer = QUESTIONS[turn % len(QUESTIONS)], ANSWERS[turn % len(ANSWERS)]
        await pool.execute("INSERT INTO message (session_id, role, status, text) VALUES ($1, 'user', 'completed', $2)", session, question)
        request = await pool.fetchval(
            "INSERT INTO request (session_id, status, request) VALUES ($1, 'in_progress', $2) RETURNING id", session, question
        )
        message = await pool.fetchval("INSERT INTO message (session_id) VALUES ($1) RETURNING id", session)
        for token in tokens(answer):
            await pool.execute("UPDATE message SET text = text || $2 WHERE id = $1", message, token)
            await asyncio.sleep(random.uniform(0.5, 1.5) * pause)
        # The page compares what it put together with this.
        proof = json.dumps({"characters": len(answer), "sha256": sha256(answer.encode()).hexdigest()})
        await pool.execute("UPDATE message SET status = 'completed', metadata = $2 WHERE id = $1", message, proof)
        await pool.execute("UPDATE request SET status = 'done', response = $2 WHERE id = $1", request, answer)
        await forget(pool, "message", session)
        await forget(pool, "request", session)
        await asyncio.sleep(2)


async def ingest(pool: asyncpg.Pool, session: UUID) -> None:
    for number in count(1):
        job = await pool.fetchval(
            "INSERT INTO job (kind, name, session_id, status) VALUES ('ingest', $2, $1, 'running') RETURNING id",
            session,
            f"report-{number}.pdf",
        )
        for percent in range(2, 101, 2):
            stage = STAGES[min(percent // 25, 3)]
            await pool.execute(
                "UPDATE job SET progress = $2, stage = $3, message = $4 WHERE id = $1", job, percent, stage, f"{percent} of 100 pages"
            )
            await asyncio.sleep(random.uniform(0.05, 0.15))
        await pool.execute(
            "UPDATE job SET status = 'completed', result = $2 WHERE id = $1",
            job,
            json.dumps({"pages": 100, "chunks": random.randrange(300, 500)}),
        )
        await forget(pool, "job", session)
        await asyncio.sleep(2)


async def forget(pool: asyncpg.Pool, table: str, session: UUID) -> None:
    """The demo is not to fill a disk."""
    oldest = f"SELECT created_at FROM {table} WHERE session_id = $1 ORDER BY created_at DESC OFFSET 9 LIMIT 1"
    await pool.execute(f"DELETE FROM {table} WHERE session_id = $1 AND created_at < ({oldest})", session)


def tokens(text: str) -> list[str]:
    """Pieces of a few characters, as a model would give them."""
    pieces = []
    while text:
        n = random.randint(1, 6)
        pieces.append(text[:n])
        text = text[n:]
    return pieces


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
