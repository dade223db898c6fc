"""What can go wrong, as a tree:

WriterError
├── NotSaved   the database or Directus was away, or the row was locked, for too long
├── Refused    the database or Directus does not take it
└── Lost       the row is no longer this writer's
JobCancelled   a user asked for the end of the job
"""


class WriterError(Exception):
    """A row could not be written."""


class NotSaved(WriterError):
    """What was written last is not stored: the other side was away for longer than the writer's patience."""


WAYS_OUT = {
    "3F000": "run `rowcast migrate up`",
    "42883": "run `rowcast migrate up`: the schema is older than version 7",
    "42501": "GRANT rowcast_writer to the role that writes",
}
"""What to do, by SQLSTATE."""


class Refused(WriterError):
    """The other side does not take it.

    `code` is the SQLSTATE (PostgreSQL's documentation, Appendix A), or for Directus the HTTP status.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        way_out = "" if "row-level security" in message else WAYS_OUT.get(code or "", "")
        super().__init__(f"{message}: {way_out}" if way_out not in message else message)
        self.code = code


REASONS = {
    "gone": "there is none: it was deleted, or never there",
    "expired": "its lease ran out, and it was failed",
    "taken": "another writer has taken it",
    "ended": "it has ended already",
    "cut": "somebody else has shortened its text",
    "overtaken": "a later write of its text was there already",
}


class Lost(WriterError):
    """The row is no longer this writer's, or never was, and nothing was changed. `reason` is one of REASONS."""

    def __init__(self, row: str, reason: str, message: str | None = None) -> None:
        super().__init__(message or f"{row}: {REASONS[reason]}")
        self.reason = reason


class JobCancelled(Exception):
    """A user asked for the end of the job. The job ends as `cancelled`, not as `failed`."""
