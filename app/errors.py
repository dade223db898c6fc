"""Every error that a user can meet.

RowcastError
├── ConfigurationError          a setting is wrong or missing
├── InvalidParameter            a request parameter is malformed
├── Unauthorized                no token, or one that does not hold (any more)
├── Forbidden                   the token does not allow it
├── NotFound                    what a request names is not there
├── TooMany                     a limit is reached
├── KeysUnavailable             what tokens are checked with cannot be fetched right now
├── EmbeddedError               the private PostgreSQL does not run
└── DatabaseUnavailable         no usable database right now; it is tried again
    ├── SchemaMismatch          migrations are missing, or newer than this program
    ├── StandbyServer           a replica, which cannot LISTEN
    └── NotificationsLost       LISTEN works but nothing arrives
"""

from typing import ClassVar

LINE_MOST = 500
"""Characters of what a client is told: it may hold what the client has sent."""


class RowcastError(Exception):
    """Something went wrong."""

    http_status: ClassVar[int] = 500
    websocket_code: ClassVar[int] = 1011
    code: ClassVar[str] = "internal"
    """For programs, beside the line for people."""
    passes: ClassVar[bool] = False
    """Whether the same may be had later."""

    @property
    def described(self) -> dict[str, str]:
        """For the client: what was wrong, in one line."""
        line = " ".join(str(self).split())[:LINE_MOST]
        return {"error": line.encode(errors="replace").decode(), "code": self.code}


class ConfigurationError(RowcastError):
    """The configuration is wrong."""


class InvalidParameter(RowcastError):
    """A request parameter is malformed."""

    http_status = 400
    websocket_code = 1008
    code = "invalid_parameter"

    def __init__(self, parameter: str, problem: str) -> None:
        super().__init__(f"{parameter}: {problem}")
        self.parameter = parameter

    @property
    def described(self) -> dict[str, str]:
        return {**super().described, "parameter": self.parameter}


class Unauthorized(RowcastError):
    """There is no token, or it does not hold."""

    http_status = 401
    websocket_code = 3000  # registered with IANA, as 3003 is
    code = "unauthorized"


class Forbidden(RowcastError):
    """The token does not allow it, or there is no such thing: which of the two is not told."""

    http_status = 403
    websocket_code = 3003
    code = "forbidden"


class NotFound(RowcastError):
    """There is no such thing."""

    http_status = 404
    websocket_code = 1008
    code = "not_found"


class TooMany(RowcastError):
    """A limit is reached: come back later."""

    http_status = 429
    websocket_code = 1013
    code = "too_many"
    passes = True


class KeysUnavailable(RowcastError):
    """The keys that tokens are checked with cannot be fetched right now."""

    http_status = 503
    websocket_code = 1013
    code = "unavailable"
    passes = True


class EmbeddedError(RowcastError):
    """The private PostgreSQL does not run."""


class DatabaseUnavailable(RowcastError):
    """The database cannot be used right now."""

    http_status = 503
    code = "unavailable"
    passes = True


class SchemaMismatch(DatabaseUnavailable):
    """The schema in the database does not fit this version of Rowcast."""


class StandbyServer(DatabaseUnavailable):
    """The server is in recovery (a replica): it can neither LISTEN nor sequence. Waiting for a primary."""


class NotificationsLost(DatabaseUnavailable):
    """LISTEN was accepted but no notification arrives: a connection pooler in transaction mode
    stands in between. Set ROWCAST_LISTEN_URL to a direct connection."""
