"""Every error that a user can meet.

RowcastError
├── ConfigurationError          a setting is wrong or missing
├── InvalidParameter            a request parameter is malformed
├── NotFound                    what a request names is not there
├── EmbeddedError               the private PostgreSQL does not run
└── DatabaseUnavailable         no usable database right now; it is tried again
    ├── SchemaMismatch          migrations are missing, or newer than this program
    ├── StandbyServer           a replica, which cannot LISTEN
    └── NotificationsLost       LISTEN works but nothing arrives
"""

from typing import ClassVar


class RowcastError(Exception):
    """Something went wrong."""

    http_status: ClassVar[int] = 500
    websocket_code: ClassVar[int] = 1011


class ConfigurationError(RowcastError):
    """The configuration is wrong."""


class InvalidParameter(RowcastError):
    """A request parameter is malformed."""

    http_status = 400
    websocket_code = 1008

    def __init__(self, parameter: str, problem: str) -> None:
        super().__init__(f"{parameter}: {problem}")
        self.parameter = parameter


class NotFound(RowcastError):
    """There is no such thing."""

    http_status = 404
    websocket_code = 1008


class EmbeddedError(RowcastError):
    """The private PostgreSQL does not run."""


class DatabaseUnavailable(RowcastError):
    """The database cannot be used right now."""

    http_status = 503


class SchemaMismatch(DatabaseUnavailable):
    """The schema in the database does not fit this version of Rowcast."""


class StandbyServer(DatabaseUnavailable):
    """The server is in recovery (a replica): it can neither LISTEN nor sequence. Waiting for a primary."""


class NotificationsLost(DatabaseUnavailable):
    """LISTEN was accepted but no notification arrives: a connection pooler in transaction mode
    stands in between. Set ROWCAST_LISTEN_URL to a direct connection."""
