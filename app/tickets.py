"""Tickets: one use each, for one stream. They are for EventSource and WebSocket in browsers, which send no headers."""

import secrets
from hashlib import sha256

import asyncpg
import msgspec

from .database import Pool
from .errors import SchemaMismatch, Unauthorized
from .events import Topic, Topics
from .grant import Grant

LIFE = 30
"""Seconds."""
TICKET_MOST = 100

# Old ones go with each new one, so that nobody else need sweep.
_ISSUE = """
    WITH old AS (DELETE FROM rowcast.ticket WHERE expires_at < now())
    INSERT INTO rowcast.ticket (hash, claims, expires_at) VALUES ($1, $2, now() + make_interval(secs => $3))
"""
_REDEEM = "DELETE FROM rowcast.ticket WHERE hash = $1 RETURNING claims, expires_at > now() AS young"


class Tickets:
    """In the database, so that any process takes one, and only one of them does. It holds their hashes, not the tickets."""

    def __init__(self, pool: Pool, claim: str) -> None:
        self._pool = pool
        self._claim = claim

    async def issue(self, grant: Grant, topics: Topics) -> str:
        ticket = secrets.token_urlsafe(32)
        held = {"claims": grant.claims, "topics": [str(topic) for topic in topics]}
        try:
            await self._pool.execute(_ISSUE, _hash(ticket), msgspec.json.encode(held).decode(), LIFE)
        except asyncpg.UndefinedTableError:
            raise SchemaMismatch("tickets need a newer schema: run `rowcast migrate up`") from None
        return ticket

    async def redeem(self, ticket: str) -> Grant:
        """Unauthorized where it was used already, is too old, or none of ours."""
        row = None
        if ticket.isascii() and len(ticket) <= TICKET_MOST:
            try:
                row = await self._pool.fetchrow(_REDEEM, _hash(ticket))
            except asyncpg.UndefinedTableError:
                raise SchemaMismatch("tickets need a newer schema: run `rowcast migrate up`") from None
        if row is None or not row["young"]:
            raise Unauthorized("the ticket was used already, or is too old: ask for another")
        held = msgspec.json.decode(row["claims"])
        return Grant.of(held["claims"], self._claim).only(tuple(Topic.parse(topic) for topic in held["topics"]))


def _hash(ticket: str) -> bytes:
    return sha256(ticket.encode()).digest()
