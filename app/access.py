"""Who may follow what: what a token names, or else who owns a session and who is in a project."""

import importlib
import inspect
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import asyncpg

from .database import Pool
from .errors import ConfigurationError, DatabaseUnavailable, Forbidden, Unauthorized
from .events import Kind, Topic, Topics
from .grant import Belongs, Grant, Right
from .grounds import ALL, Grounds

logger = logging.getLogger(__name__)

LOOKED_UP: tuple[Kind, ...] = ("session", "project", "job", "request")
"""What has rows in the reference tables."""

# A token that was issued before is refused; by the leeway later, for its issuer's clock may be ahead.
REVOKED = "SELECT EXISTS (SELECT FROM rowcast.revocation WHERE what = ANY ($1) AND date_part('epoch', at) + $3 >= $2)"
BELONGINGS = "SELECT n, session_id, project_id, owned, member FROM rowcast.belongings($1, $2, $3)"

Check = Callable[[Grant, Right, Topic], bool | Awaitable[bool]]
"""What ROWCAST_AUTHORIZE names: whether a grant covers a right to one topic. It decides alone."""


class Access:
    """What one client was let in for. Asked anew whenever that is in doubt."""

    __slots__ = ("_authority", "_doubted", "_on_doubt", "doubtful", "ends", "grant", "grounds", "right", "ways")

    def __init__(self, authority: "Authority", grant: Grant, ways: Sequence[Topics], right: Right = "stream") -> None:
        self._authority = authority
        self.grant = authority.kept(grant)
        self.ways = list(ways)
        """It may if it may follow all of one of these."""
        self.right = right
        self.grounds: frozenset[str] = frozenset()
        self.doubtful = True
        self._doubted = 0
        self._on_doubt: Callable[[], None] | None = None
        # Within the leeway after its end a token is taken once more, or a client would come back again and again.
        self.ends = grant.expires + (authority.leeway if grant.expires <= time.time() else 0)

    def __repr__(self) -> str:
        return f"<Access of {self.grant.subject!r} to {self.ways}{', doubtful' if self.doubtful else ''}>"

    @property
    def due(self) -> bool:
        """Whether to ask before anything more is told. Where nobody has begun to listen, also what shook others may be ours."""
        unheard = self._on_doubt is None and self._doubted != self._authority.grounds.shakes
        return self.doubtful or unheard or time.time() >= self.ends

    def doubt(self) -> None:
        self.doubtful = True
        if self._on_doubt:
            self._on_doubt()

    async def ask(self) -> None:
        """Unauthorized or Forbidden where it may not (any more). In doubt until that is answered."""
        authority, ways = self._authority, self.ways
        with authority.grounds.heard() as heard:
            grounds = await authority.examine(self.grant, self.right, ways, self.ends)
        if self._on_doubt:
            authority.grounds.leave(self, self.grounds)
            authority.grounds.rest(self, grounds)
        self.grounds = grounds
        self._doubted = authority.grounds.shakes
        # What changed meanwhile, the answer may not know.
        self.doubtful = self.ways is not ways or ALL in heard or not heard.isdisjoint(grounds)

    def begin(self, on_doubt: Callable[[], None]) -> None:
        """Its client is connected: told of each doubt from now on."""
        self._on_doubt = on_doubt
        self._authority.grounds.rest(self, self.grounds)
        if self._doubted != self._authority.grounds.shakes:
            self.doubtful = True  # of whatever: nobody listened meanwhile

    def end(self) -> None:
        self._on_doubt = None
        self._authority.grounds.leave(self, self.grounds)

    async def more(self, topic: Topic) -> None:
        """One topic more, if it may."""
        await self._authority.examine(self.grant, self.right, [(topic,)], self.ends)
        self.ways = [(*way, topic) for way in self.ways]
        self.doubtful = True  # to rest on that, too

    def less(self, topic: Topic) -> None:
        self.ways = [tuple(other for other in way if other != topic) for way in self.ways]


class Authority:
    """Decides by the grant, by the database, or by a function of the user's."""

    def __init__(self, pool: Pool, grounds: Grounds, check: Check | None, leeway: float) -> None:
        self._pool = pool
        self.grounds = grounds
        self._check = check
        self.leeway = leeway

    def kept(self, grant: Grant) -> Grant:
        """As much of it as a client costs memory for while it is there."""
        return grant if self._check else replace(grant, claims={})

    async def examine(self, grant: Grant, right: Right, ways: Sequence[Topics], ends: float | None = None) -> frozenset[str]:
        """What the access rests on. Unauthorized, Forbidden, or whatever a database that is away raises."""
        if time.time() >= (grant.expires + self.leeway if ends is None else ends):
            raise Unauthorized("the token has expired")
        if self._check is None and not grant.has(right):
            raise Forbidden(f"the token does not give the right to {right}")
        topics = tuple(dict.fromkeys(topic for way in ways for topic in way))
        rows = await self._belongings(grant, topics)
        refused: Topic | None = None
        for way in ways:
            refused = await self._uncovered(grant, right, way, rows)
            if refused is None:
                sessions = {str(topic) for topic in topics if topic.kind == "session"} | {
                    f"session:{row.session_id}" for row in rows.values()
                }
                if await self._revoked(grant, grant.revocable_as | sessions):
                    raise Unauthorized("the token is revoked")
                return grant.revocable_as | sessions | {str(topic) for topic in topics}
        raise Forbidden(f"{refused}: not allowed, or not there")

    async def _uncovered(self, grant: Grant, right: Right, topics: Topics, rows: dict[Topic, Belongs]) -> Topic | None:
        for topic in topics:
            if grant.topics is not None and topic not in grant.topics:
                return topic
            if not (await self._checked(grant, right, topic) if self._check else grant.covers(topic, rows.get(topic))):
                return topic
        return None

    async def _checked(self, grant: Grant, right: Right, topic: Topic) -> bool:
        assert self._check
        try:
            answer = self._check(grant, right, topic)
            return (await answer if inspect.isawaitable(answer) else answer) is True
        except Exception as error:
            logger.exception("ROWCAST_AUTHORIZE failed")
            raise DatabaseUnavailable("whether that is allowed cannot be known right now") from error

    async def _belongings(self, grant: Grant, topics: Topics) -> dict[Topic, Belongs]:
        """Of those topics that the grant alone does not decide, and of what can be revoked with its session."""
        alone = ("session", "project")
        asked = [topic for topic in topics if topic.kind in LOOKED_UP and not (topic.kind in alone and grant.covers(topic, None))]
        if not asked:
            return {}
        try:
            found = await self._pool.fetch(BELONGINGS, grant.subject, [topic.kind for topic in asked], [topic.id for topic in asked])
        except asyncpg.UndefinedFunctionError:
            return {}  # no reference tables: nobody owns anything
        return {asked[row["n"] - 1]: Belongs(row["session_id"], row["project_id"], row["owned"], row["member"]) for row in found}

    async def _revoked(self, grant: Grant, names: frozenset[str]) -> bool:
        try:
            return bool(await self._pool.fetchval(REVOKED, list(names), grant.issued, self.leeway))
        except asyncpg.UndefinedTableError:
            return False  # a schema one version older


def load_check(path: str) -> Check:
    """`package.module:function`, installed or of the folder that we are in. ConfigurationError where there is none."""
    module, _, name = path.partition(":")
    sys.path.append(str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"ROWCAST_AUTHORIZE: {path}: {error}") from None
    if not callable(found):
        raise ConfigurationError(f"ROWCAST_AUTHORIZE: {path} is no function")
    check: Check = found
    return check
