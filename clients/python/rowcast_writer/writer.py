"""Writer: one for a process, whatever number of messages and jobs it writes at once."""

from types import TracebackType
from typing import Any, Self
from uuid import UUID

from .databases import open_database
from .flusher import Flusher
from .jobs import Job
from .messages import Message
from .requests import Request
from .statements import as_object

USER_TEXT = "Something went wrong. Please try again."

BUFFER = 8 * 2**20


class Writer:
    """Writes messages, jobs and requests as rows. Make one for a process, and close it at the end.

    `target`   a DSN; or an asyncpg pool, a SQLAlchemy engine or session, a psycopg connection or pool
    `interval` seconds between two writes of text that grows; 0.05 to 0.5 make sense
    `lease`    seconds after which rows are failed that nobody renews, because the process is gone
    `patience` seconds for which it goes on trying while the database is away, before NotSaved is raised
    `buffer`   code points of text that are kept while the database is away; write() waits where there would be more
    `user_text` what users read of a message, job or request that an exception has ended
    """

    def __init__(
        self,
        target: Any,
        *,
        interval: float = 0.2,
        lease: float = 30.0,
        patience: float = 60.0,
        buffer: int = BUFFER,
        user_text: str = USER_TEXT,
    ) -> None:
        for name, value in (("interval", interval), ("lease", lease), ("patience", patience), ("buffer", buffer)):
            if not value > 0:
                raise ValueError(f"{name} is to be above 0, not {value!r}")
        if lease < 10 * interval:
            raise ValueError(f"the lease ({lease:g} s) is to be at least ten times the interval ({interval:g} s)")
        self._flusher = Flusher(open_database(target), interval, lease, patience, buffer)
        self._user_text = user_text

    def __repr__(self) -> str:
        return f"<Writer {self._flusher}>"

    def message(
        self,
        session_id: UUID | str,
        *,
        job_id: UUID | str | None = None,
        role: str = "assistant",
        metadata: dict[str, Any] | None = None,
        id: UUID | str | None = None,
    ) -> Message:
        """A message of a session: `async with writer.message(session_id) as message:`. With the `id` of a row that is
        there already, pending or streaming and nobody's, it is taken, and its text goes on."""
        values = {"session_id": session_id, "job_id": job_id, "role": role, "text": "", "metadata": as_object(metadata or {}, "metadata")}
        return Message(self._flusher, id, self._user_text, **values)

    def job(
        self,
        kind: str,
        *,
        session_id: UUID | str | None = None,
        project_id: UUID | str | None = None,
        name: str | None = None,
        id: UUID | str | None = None,
    ) -> Job:
        """A job: `async with writer.job("ingest", session_id=…) as job:`. With the `id` of a row that is there already,
        pending or running and nobody's, it is taken."""
        return Job(self._flusher, id, self._user_text, kind=kind, session_id=session_id, project_id=project_id, name=name)

    def request(self, session_id: UUID | str | None = None, *, id: UUID | str | None = None, text: str | None = None) -> Request:
        """A request of a session, or with `id` one that is there: `async with writer.request(id=…) as request:`."""
        if session_id is None and id is None:
            raise ValueError("give a session_id, or the id of a request that is there")
        return Request(self._flusher, id, self._user_text, session_id=session_id, request=text)

    async def close(self) -> None:
        """Fail what is still open, and close what was opened here."""
        await self._flusher.finish()

    async def __aenter__(self) -> Self:
        self._flusher.is_closed = False
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()
