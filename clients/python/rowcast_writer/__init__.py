"""Streams the answers of language models into PostgreSQL rows. Start at Writer.

To read it: draft (what a message says), held (a row that is ours), messages, jobs and requests (what pipelines call),
flusher (when rows are written), statements (what is asked of the database), connections. Beside that: graphs, directus, and
outputs, which writes a message to both.
"""

from .errors import JobCancelled, Lost, NotSaved, Refused, WriterError
from .jobs import Job, Step
from .messages import Message
from .requests import Request
from .writer import Writer

__all__ = ["Job", "JobCancelled", "Lost", "Message", "NotSaved", "Refused", "Request", "Step", "Writer", "WriterError"]
