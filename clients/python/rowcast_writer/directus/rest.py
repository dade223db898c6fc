"""Requests to Directus's REST interface, and what its answers mean. httpx's errors are translated here and nowhere else."""

import asyncio
import json
import time
from collections.abc import Coroutine, Iterable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ..errors import Refused

if TYPE_CHECKING:
    import httpx

REQUEST_TIMEOUT = 10.0
"""Seconds for a request and its answer."""

KEEPALIVE = 3.0
"""Seconds that an idle connection is kept. Directus closes it after 5, and a request that meets this end is lost."""

REQUEST_TIMEOUT_STATUS, TOO_MANY_REQUESTS, UNAVAILABLE = 408, 429, 503


class Passing(Exception):
    """It did not work this time, and may the next. `doubtful`: it may have been carried out all the same.
    `wait`: seconds that Directus asks us to wait."""

    def __init__(self, message: str, *, doubtful: bool, wait: float = 0.0) -> None:
        super().__init__(message)
        self.doubtful = doubtful
        self.wait = wait


class NotUnique(Refused):
    """An item of this key is there already."""


class Steadfast(asyncio.Task[Any]):
    """A task that asyncio.run() cannot cut short when a program ends. A request that is cut may still be carried out,
    after the one that follows it. So it has to end by itself, and to use neither asyncio.timeout() nor a TaskGroup,
    which cancel without a message too; anyio, below httpx, gives one."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], name: str) -> None:
        super().__init__(coroutine, loop=asyncio.get_running_loop(), name=name)

    def cancel(self, msg: Any = None) -> bool:
        return False if msg is None else super().cancel(msg)

    def cut(self) -> None:
        super().cancel()


class Rest:
    """A Directus server, with a token. `client`: an httpx.AsyncClient of the caller's, who closes it."""

    def __init__(self, url: str, token: str, client: "httpx.AsyncClient | None") -> None:
        try:
            import httpx
        except ModuleNotFoundError:
            raise ModuleNotFoundError("DirectusMessages needs httpx: pip install 'rowcast-writer[directus]'") from None
        self._url = _checked_url(url)
        self._token = _checked_token(token)
        self._headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json", "Accept": "application/json"}
        self._owned = None if client else httpx.AsyncClient(timeout=None, limits=httpx.Limits(keepalive_expiry=KEEPALIVE))
        self._client: httpx.AsyncClient = client or self._owned  # type: ignore[assignment]
        self._failures = httpx.TransportError
        self._unsent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

    def __repr__(self) -> str:
        return self.host

    @property
    def host(self) -> str:
        return urlsplit(self._url).netloc.rpartition("@")[2]

    async def ask(self, method: str, *path: str | int, body: dict[str, Any] | None = None, fields: Iterable[str]) -> dict[str, Any] | None:
        """Send a request, and give what the answer says of these fields; None if it says nothing. Passing, Refused."""
        url = "/".join([self._url, *(quote(str(part), safe="") for part in path)])
        content = None if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        sent = self._client.request(method, url, params={"fields": ",".join(fields)}, content=content, headers=self._headers)
        request = Steadfast(sent, f"directus {method}")
        if not (await asyncio.wait([request], timeout=REQUEST_TIMEOUT))[0]:
            request.cut()
            await asyncio.wait([request])
        if request.cancelled():
            raise Passing(f"{self.host} did not answer within {REQUEST_TIMEOUT:g} s", doubtful=True)
        try:
            return self._understood(request.result())
        except self._failures as error:
            reason = self._without_token(str(error) or type(error).__name__)
            raise Passing(f"{self.host}: {reason}", doubtful=not isinstance(error, self._unsent)) from None

    async def close(self) -> None:
        if self._owned:
            await self._owned.aclose()

    def _understood(self, response: "httpx.Response") -> dict[str, Any] | None:
        if response.status_code == 204:
            return None
        answer = _json(response)
        if response.is_success:
            data = answer.get("data")
            if not isinstance(data, dict):
                raise Refused(f"{self.host} does not answer as Directus does: is the address right?", str(response.status_code))
            return data
        status = response.status_code
        message, code = _first_error(answer)
        line = self._without_token(f"{self.host} answers {status}: {message or response.reason_phrase}")
        if status in (REQUEST_TIMEOUT_STATUS, TOO_MANY_REQUESTS) or status >= 500:
            doubtful = status not in (TOO_MANY_REQUESTS, UNAVAILABLE)
            raise Passing(line, doubtful=doubtful, wait=_retry_after(response.headers.get("Retry-After", "")))
        raise (NotUnique if code == "RECORD_NOT_UNIQUE" else Refused)(line, str(status))

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "…")


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("the url is to be the address of Directus, like https://directus.example.com")
    return url.rstrip("/")


def _checked_token(token: str) -> str:
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token is to be a static token of a Directus user: printable ASCII without spaces")
    return token


def _json(response: "httpx.Response") -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _first_error(answer: dict[str, Any]) -> tuple[str, str]:
    """The message and the code, as Directus gives them."""
    match answer:
        case {"errors": [{"message": str(message), "extensions": {"code": str(code)}}, *_]}:
            return message, code
        case {"errors": [{"message": str(message)}, *_]}:
            return message, ""
    return "", ""


def _retry_after(header: str) -> float:
    """Seconds (RFC 9110, section 10.2.3); 0 if it does not say."""
    try:
        return max(0.0, float(header) if header.strip().isdecimal() else parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0
