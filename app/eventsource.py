"""A small client of server-sent events (HTML standard, section 9.2) that resumes."""

import http.client
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from .errors import ConfigurationError

SILENCE = 40.0
"""Seconds without a byte, keep-alives included, after which the connection counts as dead."""

AGAIN = (408, 429)
"""Statuses below 500 that are worth another try."""

LONGEST = 60.0
"""Seconds between two tries, whatever the server asks for."""

SCHEMES = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}


T = TypeVar("T")


class Frame(NamedTuple):
    type: str
    data: str
    """As it came."""
    payload: Any
    """The JSON that `data` is."""
    cursor: str | None


class Refused(Exception):
    """Not now."""


@dataclass
class EventSource:
    """Frames for ever, reconnecting with the last cursor; ends when the server says that there will be no more (204).

    `note` is told, once, that the connection is lost, and once that it is back.
    Raises ConfigurationError for an answer that another try would not change.
    """

    url: str
    cursor: str | None
    note: Callable[[str], None]
    token: str | None = None
    retry: float = 1.0
    """Seconds between tries. The server sets it."""
    _lost: bool = False

    def __iter__(self) -> Iterator[Frame]:
        return self._patiently(self._stream)

    def ask(self, url: str) -> Any:
        """The JSON at another address of the hub, None if there is nothing; tried again as the stream is."""
        return next(self._patiently(lambda: self._answer(url)), None)

    def _patiently(self, read: Callable[[], Iterator[T]]) -> Iterator[T]:
        while True:
            try:
                yield from read()
                return
            except (OSError, http.client.HTTPException, Refused) as error:
                self._say(lost=True, why=str(error) or type(error).__name__)
            time.sleep(self.retry)

    def _say(self, lost: bool, why: str = "") -> None:
        if lost != self._lost:
            self.note(f"no connection ({why}), trying again" if lost else "connected again")
        self._lost = lost

    def _stream(self) -> Iterator[Frame]:
        """Returns if there will be nothing more. However else the connection ends, that raises."""
        with self._get(self.url, "text/event-stream", 204, {"Last-Event-ID": self.cursor} if self.cursor else {}) as response:
            if response.status == 204:
                return
            for frame in self._frames(response):
                self._say(lost=False)
                yield frame
            raise Refused("the stream ended")

    def _answer(self, url: str) -> Iterator[Any]:
        with self._get(url, "application/json", 404, {}) as response:
            if response.status != 404:
                yield json.load(response)

    @contextmanager
    def _get(self, url: str, type: str, nothing: int, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        """An answer of this type, or with the status that says that there is none."""
        connection = self._connection()
        try:
            parts = urlsplit(url)
            shown = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            connection.request("GET", f"{parts.path}?{parts.query}", headers={"Accept": type, **shown, **headers})
            response = connection.getresponse()
            if response.status != nothing:
                self._check(response, type)
            yield response
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        try:
            parts = urlsplit(self.url)
            connect: type[http.client.HTTPConnection] = SCHEMES[parts.scheme]
            return connect(parts.hostname or "", parts.port, timeout=SILENCE)
        except (ValueError, KeyError, http.client.HTTPException):
            raise ConfigurationError(f"{self.url} is no address of a hub: http://host:port") from None

    def _check(self, response: http.client.HTTPResponse, type: str) -> None:
        if response.status >= 500 or response.status in AGAIN:
            raise Refused(f"the hub answers {response.status}")
        if response.status != 200:
            raise ConfigurationError(f"the hub answers {response.status}: {_reason(response.read(500))}")
        if response.headers.get_content_type() != type:
            raise ConfigurationError(f"what answers at {self.url} is no hub")

    def _frames(self, lines: Iterable[bytes]) -> Iterator[Frame]:
        type, data, cursor = "message", [], self.cursor
        for line in lines:
            field, _, value = line.decode(errors="replace").rstrip("\r\n").partition(":")
            value = value.removeprefix(" ")
            match field:
                case "id" if value.isascii() and value.isprintable():  # it goes back in a header
                    cursor = value
                case "event":
                    type = value
                case "data":
                    data.append(value)
                case "retry" if value.isdecimal():
                    self.retry = min(int(value) / 1000, LONGEST)
                case "" if not line.strip():
                    self.cursor = cursor  # only now: a frame that was cut in the middle comes again
                    if data:
                        yield self._frame(type, "\n".join(data))
                    type, data = "message", []

    def _frame(self, type: str, data: str) -> Frame:
        try:
            return Frame(type, data, json.loads(data), self.cursor)
        except ValueError:
            raise ConfigurationError(f"what answers at {self.url} is no hub") from None


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        return body.decode(errors="replace")
