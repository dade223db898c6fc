"""Streams the answers of language models into PostgreSQL rows. Start at Writer."""

from .errors import JobCancelled, Lost, NotSaved, Refused, WriterError
from .jobs import Job, Request, Step
from .messages import Message
from .writer import Writer

__all__ = ["Job", "JobCancelled", "Lost", "Message", "NotSaved", "Refused", "Request", "Step", "Writer", "WriterError"]
