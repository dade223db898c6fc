"""`rowcast tail`: a small client of server-sent events that resumes."""

import http.client
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote, urlencode, urlsplit

from rich.console import Console

from .errors import ConfigurationError

SILENCE = 20.0
"""Seconds without a byte, keep-alives included, after which the connection counts as dead."""

out = Console(highlight=False, soft_wrap=True)


@dataclass
class Target:
    url: str
    session: str
    after: str | None
    since: str
    retry: float = 1.0


def tail(target: Target, as_json: bool) -> None:
    try:
        for type, data in follow(target):
            show(type, data, target.after, as_json)
    except KeyboardInterrupt:
        pass


def follow(target: Target) -> Iterator[tuple[str, str]]:
    """Events for ever, reconnecting with the last cursor; ends on 204."""
    lost = False
    while True:
        try:
            for event in _stream(target):
                if event is None:
                    return
                if lost:
                    out.print("[dim]connected again[/dim]")
                lost = False
                yield event
        except (OSError, http.client.HTTPException) as error:
            if not lost:
                out.print(f"[dim]no connection ({error or type(error).__name__}), trying again[/dim]")
            lost = True
        time.sleep(target.retry)


def _stream(target: Target) -> Iterator[tuple[str, str] | None]:
    url = urlsplit(target.url)
    connect = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = connect(url.hostname or "", url.port, timeout=SILENCE)
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": target.after} if target.after else {})}
    try:
        query = urlencode({"from": target.since})
        connection.request("GET", f"{url.path.rstrip('/')}/api/sse/{quote(target.session, safe='')}?{query}", headers=headers)
        response = connection.getresponse()
        if response.status == 204:
            yield None
        elif 400 <= response.status < 500:
            raise ConfigurationError(f"{target.url} answers {response.status}: {response.read(500).decode(errors='replace')}")
        elif response.status == 200:
            yield from _events(response, target)
    finally:
        connection.close()


def _events(response: http.client.HTTPResponse, target: Target) -> Iterator[tuple[str, str]]:
    type, data, id = "message", [], target.after
    for line in response:
        field, _, value = line.decode().rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        match field:
            case "id":
                id = value
            case "event":
                type = value
            case "data":
                data.append(value)
            case "retry":
                target.retry = int(value) / 1000
            case "" if not line.strip():
                target.after = id  # only now: a frame that was cut in the middle comes again
                if data:
                    yield type, "\n".join(data)
                type, data = "message", []


def show(type: str, data: str, cursor: str | None, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"cursor": cursor, "type": type, "data": json.loads(data)}, ensure_ascii=False), flush=True)
        return
    style = "dim" if type in ("connected", "caught_up", "bye") else "red" if type in ("reset", "error") else "cyan"
    out.print(f"[dim]{datetime.now():%H:%M:%S}[/dim] [{style}]{type:24}[/{style}]", end=" ")
    out.print(data, markup=False)
    sys.stdout.flush()
