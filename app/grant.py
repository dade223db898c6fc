"""A grant: what a token allows. Deciding is done here, without asking anybody."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from .errors import InvalidParameter, Unauthorized
from .events import ID_MOST, Kind, Topic, Topics, Types

Right = Literal["stream", "cancel", "admin"]

OWNER: frozenset[Right] = frozenset(("stream", "cancel"))
NAMED: frozenset[Right] = frozenset(("stream",))
"""What is allowed where a token names no rights: to whom ownership lets in, and to whom the token does."""

NAMES_MOST = 1000

Id = Annotated[str, Meta(min_length=1, max_length=ID_MOST)]
Ids = Id | Annotated[list[Id], Meta(max_length=NAMES_MOST)]


class Allowed(msgspec.Struct, forbid_unknown_fields=True):
    """The claim of a token that says what it allows. Ids are whole, prefixes such as `team-*`, or `*`."""

    sessions: Ids | None = None
    projects: Ids | None = None
    jobs: Ids | None = None
    requests: Ids | None = None
    users: Ids | None = None
    tables: Ids | None = None
    rights: list[Right] | None = None
    types: list[str] | None = None

    def named(self) -> dict[Kind, "Names"] | None:
        """None where nothing is named: then ownership decides."""
        given: dict[Kind, Ids | None] = {
            "session": self.sessions,
            "project": self.projects,
            "job": self.jobs,
            "request": self.requests,
            "user": self.users,
            "table": self.tables,
        }
        if all(ids is None for ids in given.values()):
            return None
        return {kind: Names([ids] if isinstance(ids, str) else ids) for kind, ids in given.items() if ids is not None}


class Names:
    """Ids, whole or by their beginning."""

    __slots__ = ("_prefixes", "_whole")

    def __init__(self, patterns: list[str]) -> None:
        self._whole = frozenset(pattern for pattern in patterns if not pattern.endswith("*"))
        self._prefixes = tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*"))

    def __contains__(self, id: object) -> bool:
        return id in self._whole or (isinstance(id, str) and id.startswith(self._prefixes))


class Belongs(NamedTuple):
    """Where a row belongs, and to whom: see rowcast.belongings()."""

    session_id: str | None
    project_id: str | None
    owned: bool
    member: bool


@dataclass(frozen=True, slots=True)
class Grant:
    subject: str | None
    """`sub` (RFC 7519, 4.1.2); None where everything is allowed to everybody."""
    rights: frozenset[Right]
    names: Mapping[Kind, Names] | None = None
    """By kind; None: ownership decides."""
    types: str = "*"
    """Of events, as Types reads them."""
    issued: float = 0.0
    """`iat`, in seconds since 1970; of old, where the token does not say."""
    expires: float = float("inf")
    """`exp`."""
    ids: tuple[str, ...] = ()
    """Of the token (`jti`) and of the login that it is of (`sid`, of OpenID Connect)."""
    topics: frozenset[Topic] | None = None
    """Those of a ticket, and no others."""
    claims: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Grant of {self.subject!r}: {', '.join(sorted(self.rights))}>"

    @classmethod
    def of(cls, claims: Mapping[str, Any], claim: str) -> "Grant":
        """Of verified claims. Unauthorized where they are no grant: what is not understood allows nothing."""
        try:
            allowed = msgspec.convert(claims.get(claim, {}), Allowed)
            types = ",".join(allowed.types) if allowed.types is not None else "*"
            Types(types)
            subject = Topic.of("user", msgspec.convert(claims.get("sub"), str), "sub").id
            ids = tuple(Topic.of("user", msgspec.convert(claims[name], str), name).id for name in ("jti", "sid") if name in claims)
            if b"\\u0000" in msgspec.json.encode(claims):
                raise ValueError("U+0000")  # PostgreSQL keeps none, nor halves of characters, of which the encoder complains
            issued, expires = float(claims.get("iat", 0)), float(claims["exp"])
        except (msgspec.ValidationError, InvalidParameter) as error:
            raise Unauthorized(f"the token's claims cannot be read: {error}") from None
        except (ValueError, TypeError, OverflowError):  # halves of characters, numbers that are none
            raise Unauthorized("the token's claims cannot be read") from None
        names = allowed.named()
        rights = frozenset(allowed.rights) if allowed.rights is not None else OWNER if names is None else NAMED
        return cls(subject, rights, names, types, issued, expires, ids, claims=claims)

    def only(self, topics: Topics) -> "Grant":
        return replace(self, topics=frozenset(topics))

    @property
    def is_admin(self) -> bool:
        return "admin" in self.rights

    def has(self, right: Right) -> bool:
        return self.is_admin or right in self.rights

    def covers(self, topic: Topic, row: Belongs | None) -> bool:
        """Whether it allows to follow this, which belongs there, if it is there. Of a ticket, only within its topics."""
        if self.is_admin:
            return True
        if self.names is None:
            return topic == ("user", self.subject) or (row is not None and (row.owned or row.member))
        return (
            topic.id in self.names.get(topic.kind, ())
            or (row is not None and row.session_id in self.names.get("session", ()))
            or (row is not None and row.project_id in self.names.get("project", ()))
        )

    @property
    def revocable_as(self) -> frozenset[str]:
        """The names under which it can be revoked: see rowcast.revoke()."""
        return frozenset((f"user:{self.subject}", *(f"token:{id}" for id in self.ids)))


EVERYBODY = Grant(None, frozenset(("admin",)))
"""Where there is no authentication."""
