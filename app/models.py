"""The schema's one description for Python: the reference tables, and the log's own.

`alembic check` finds no difference between this and a migrated database. Rows may be written by
anything that speaks SQL; nothing in Rowcast needs these classes to write.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import REAL, BigInteger, CheckConstraint, ForeignKey, Identity, Index, MetaData, Text
from sqlalchemy import text as sql
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType


class XID8(UserDefinedType[str]):
    """A transaction id that never wraps."""

    cache_ok = True

    def get_col_spec(self, **kw: Any) -> str:
        return "xid8"


class Snapshot(UserDefinedType[str]):
    """Which transactions were visible at a moment."""

    cache_ok = True

    def get_col_spec(self, **kw: Any) -> str:
        return "pg_snapshot"


# Reflection, as `alembic check` does it, must know the types that SQLAlchemy does not.
postgresql.base.ischema_names.update(xid8=XID8, pg_snapshot=Snapshot)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        }
    )
    type_annotation_map = {
        str: Text,
        int: BigInteger,
        float: REAL,
        datetime: TIMESTAMP(timezone=True),
        dict[str, Any]: JSONB,
    }


class Timestamps:
    """`updated_at` is kept by a trigger."""

    created_at: Mapped[datetime] = mapped_column(server_default=sql("now()"), sort_order=1)
    updated_at: Mapped[datetime] = mapped_column(server_default=sql("now()"), sort_order=2)


class Row(Timestamps):
    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=sql("gen_random_uuid()"), sort_order=-1)


def leased() -> Index:
    return Index(None, "lease_expires_at", postgresql_where=sql("lease_expires_at IS NOT NULL"))


def one_of(column: str, *values: str) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=column)


class Leased:
    """Held by a program under a fence, until the lease runs out. Of no event."""

    fence: Mapped[UUID | None] = mapped_column(sort_order=3)
    lease_expires_at: Mapped[datetime | None] = mapped_column(sort_order=5)


class Revised(Leased):
    """A write of a lower revision than the row's comes too late."""

    revision: Mapped[int | None] = mapped_column(sort_order=4)


class Project(Row, Base):
    __tablename__ = "project"

    name: Mapped[str] = mapped_column(server_default="")


class Session(Row, Base):
    """A conversation, or whatever else one page follows."""

    __tablename__ = "session"

    project_id: Mapped[UUID | None] = mapped_column(ForeignKey("project.id", ondelete="SET NULL"), index=True)
    owner_id: Mapped[str | None] = mapped_column(index=True)


class ProjectMember(Base):
    """Who may see a project."""

    __tablename__ = "project_member"

    project_id: Mapped[UUID] = mapped_column(ForeignKey("project.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[str] = mapped_column(primary_key=True, index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=sql("now()"))


class Request(Leased, Row, Base):
    __tablename__ = "request"
    __table_args__ = (
        one_of("status", "pending", "in_progress", "done", "error"),
        Index("idx_request_session_updated", "session_id", "updated_at"),
        leased(),
    )

    session_id: Mapped[UUID] = mapped_column(ForeignKey("session.id", ondelete="CASCADE"))
    sequence_number: Mapped[int] = mapped_column(Identity())
    status: Mapped[str] = mapped_column(server_default="pending")
    request: Mapped[str | None]
    response: Mapped[str | None]
    error: Mapped[str | None]


class Job(Revised, Row, Base):
    """`running` and `processing` say the same."""

    __tablename__ = "job"
    __table_args__ = (
        one_of("kind", "ingest", "agent", "workflow", "task"),
        one_of("status", "pending", "running", "processing", "completed", "failed", "cancelled"),
        CheckConstraint("progress >= 0 AND progress <= 100", name="progress"),
        leased(),
    )

    kind: Mapped[str] = mapped_column(server_default="task")
    name: Mapped[str | None]
    session_id: Mapped[UUID | None] = mapped_column(ForeignKey("session.id", ondelete="CASCADE"), index=True)
    project_id: Mapped[UUID | None] = mapped_column(ForeignKey("project.id", ondelete="CASCADE"), index=True)
    status: Mapped[str] = mapped_column(server_default="pending")
    stage: Mapped[str | None]
    progress: Mapped[float] = mapped_column(server_default="0")
    message: Mapped[str | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]
    cancel_requested_at: Mapped[datetime | None]


class JobStep(Row, Base):
    __tablename__ = "job_step"
    __table_args__ = (one_of("status", "pending", "running", "processing", "completed", "failed", "cancelled"),)

    job_id: Mapped[UUID] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(server_default="")
    sequence_number: Mapped[int] = mapped_column(Identity())
    status: Mapped[str] = mapped_column(server_default="pending")
    state: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]


class Message(Revised, Row, Base):
    __tablename__ = "message"
    __table_args__ = (
        one_of("status", "pending", "streaming", "completed", "failed"),
        Index("message_session_id_created_at_idx", "session_id", "created_at"),
        leased(),
    )

    session_id: Mapped[UUID] = mapped_column(ForeignKey("session.id", ondelete="CASCADE"))
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("job.id", ondelete="SET NULL"), index=True)
    role: Mapped[str] = mapped_column(server_default="assistant")
    status: Mapped[str] = mapped_column(server_default="streaming")
    text: Mapped[str] = mapped_column(server_default="")
    # `metadata` is taken in a declarative class.
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=sql("'{}'"))


class Outbox(Base):
    """Captured changes that have no position yet. Writers only insert."""

    __tablename__ = "outbox"
    __table_args__ = {"schema": "rowcast"}

    xid: Mapped[str] = mapped_column(XID8, primary_key=True, server_default=sql("pg_current_xact_id()"))
    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    session_id: Mapped[str | None]
    project_id: Mapped[str | None]
    job_id: Mapped[str | None]
    request_id: Mapped[str | None]
    user_id: Mapped[str | None]
    table_name: Mapped[str | None]
    channel: Mapped[str | None]
    type: Mapped[str]
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=sql("clock_timestamp()"))


class LoggedEvent(Base):
    """The log."""

    __tablename__ = "event"
    __table_args__ = (
        *(
            Index(f"event_{column}_position_idx", column, "position", postgresql_where=sql(f"{column} IS NOT NULL"))
            for column in ("session_id", "project_id", "job_id", "request_id", "user_id", "table_name")
        ),
        {"schema": "rowcast"},
    )

    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    outbox_id: Mapped[int]
    session_id: Mapped[str | None]
    project_id: Mapped[str | None]
    job_id: Mapped[str | None]
    request_id: Mapped[str | None]
    user_id: Mapped[str | None]
    table_name: Mapped[str | None]
    channel: Mapped[str | None]
    type: Mapped[str]
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Head(Base):
    """How far the log goes, a row a batch; the newest counts. Appended to, since one row updated for
    ever grows a chain of dead versions as soon as anybody holds a snapshot."""

    __tablename__ = "head"
    __table_args__ = {"schema": "rowcast"}

    batch: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    position: Mapped[int]
    low: Mapped[str] = mapped_column(Snapshot)
    high: Mapped[str | None] = mapped_column(Snapshot)
    last_id: Mapped[int]
    at: Mapped[datetime] = mapped_column(server_default=sql("now()"))


class Epoch(Base):
    """The log's identities, each with the head where it started. Never updated: see rowcast.is_ours."""

    __tablename__ = "epoch"
    __table_args__ = {"schema": "rowcast"}

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    epoch: Mapped[str]
    start: Mapped[int]
    timeline: Mapped[str]
    database: Mapped[int] = mapped_column(postgresql.OID)
    stamp: Mapped[str] = mapped_column(XID8, server_default=sql("pg_current_xact_id()"))
    at: Mapped[datetime] = mapped_column(server_default=sql("now()"))


class Pruned(Base):
    """One row: the floor (the last position pruned), and the snapshot up to which the outbox was pruned."""

    __tablename__ = "pruned"
    __table_args__ = {"schema": "rowcast"}

    floor: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    low: Mapped[str] = mapped_column(Snapshot)


class Subscription(Base):
    """How far a named consumer has read: all events up to the position. Kept with rowcast.ack()."""

    __tablename__ = "subscription"
    __table_args__ = {"schema": "rowcast"}

    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(server_default=sql("now()"))


class Secret(Base):
    """One row: the channel on which events go to the hubs. Anybody may LISTEN and NOTIFY on one that they can name,
    so only the hub's role can read it."""

    __tablename__ = "secret"
    __table_args__ = {"schema": "rowcast"}

    channel: Mapped[str] = mapped_column(primary_key=True)


class Revocation(Base):
    """Since when a `user:`, `token:` or `session:` is refused what was allowed before."""

    __tablename__ = "revocation"
    __table_args__ = {"schema": "rowcast"}

    what: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=sql("clock_timestamp()"))


class Ticket(Base):
    """What a ticket stands for, until it is taken. Unlogged: after a crash it is empty, so that none is taken twice."""

    __tablename__ = "ticket"
    __table_args__ = (Index("ticket_expires_at_idx", "expires_at"), {"schema": "rowcast", "prefixes": ["UNLOGGED"]})

    hash: Mapped[bytes] = mapped_column(primary_key=True)
    claims: Mapped[dict[str, Any]]
    expires_at: Mapped[datetime]
