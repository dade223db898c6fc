"""From a token to a grant: JSON Web Tokens (RFC 7519), checked with keys that are bound to one algorithm each.

A token never chooses how it is checked (RFC 8725, 3.1): its `alg` only selects among keys of that algorithm, so that
a public key cannot be taken for a secret, and `none` fits no key.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import jwt

from .errors import ConfigurationError, KeysUnavailable, Unauthorized
from .grant import Grant
from .keys import ALGORITHMS, Key, configured_keys, jwk_set, weakness
from .settings import Settings

logger = logging.getLogger(__name__)

TOKEN_MOST = 8192
"""Characters of a token."""
FETCH_TIMEOUT = 5.0
KEYS_LIFE = 300.0
"""Seconds after which a JWKS URL is asked again."""
COOLDOWN = 5.0
"""Seconds between two times that it is asked: tokens that name keys of their own invention do not make us ask on."""


class Verifier:
    """Checks tokens. Where keys come from a URL, `run()` keeps them new."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = configured_keys(settings)
        self._remote: list[Key] | None = None
        self._client = jwt.PyJWKClient(settings.jwks_url, timeout=FETCH_TIMEOUT, cache_jwk_set=False) if settings.jwks_url else None
        self._fetching: asyncio.Task[None] | None = None
        self._fetched = float("-inf")
        self._problem: str | None = "the keys have not been fetched yet" if self._client else None

    def __repr__(self) -> str:
        return f"<Verifier {[*self._keys, *(self._remote or ())]}>"

    @property
    def trouble(self) -> str | None:
        """Why no token can be checked now. While an issuer is away, its keys of before are used on."""
        return self._problem if self._remote is None else None

    @property
    def has_keys(self) -> bool:
        return bool(self._keys) or self._client is not None

    async def run(self) -> None:
        """Ask for the keys now and then: one that is withdrawn is no longer taken."""
        while self._client:
            await self._fetch()
            await asyncio.sleep(COOLDOWN if self._problem else KEYS_LIFE)

    async def verify(self, token: str) -> Grant:
        """Unauthorized where it does not hold, KeysUnavailable where that cannot be known now."""
        header = _header(token)
        if self._client and not self._candidates(header):
            await self._fetch()  # the issuer may have a new key
        claims = self._decode(token, self._candidates(header))
        return Grant.of(claims, self._settings.claim)

    def _candidates(self, header: dict[str, Any]) -> list[Key]:
        id, algorithm = header.get("kid"), header.get("alg")
        keys = [key for key in (*self._keys, *(self._remote or ())) if key.algorithm == algorithm]
        named = [key for key in keys if key.id is not None and key.id == id]
        return named or [key for key in keys if id is None or key.id is None]

    def _decode(self, token: str, keys: Sequence[Key]) -> dict[str, Any]:
        if not keys:
            if self._client and self._remote is None:
                raise KeysUnavailable("the token cannot be checked: its issuer's keys are not there yet")
            raise Unauthorized("the token is of a key or an algorithm that is not known here")
        for key in keys:
            with suppress(jwt.InvalidSignatureError):
                return self._checked(token, key)
        raise Unauthorized("the token's signature is wrong")

    def _checked(self, token: str, key: Key) -> dict[str, Any]:
        settings = self._settings
        try:
            claims = jwt.decode(
                token,
                key.material,
                algorithms=[key.algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway,
                options={"require": ["exp", "sub"], "verify_aud": settings.audience is not None},
            )
        except jwt.InvalidSignatureError:
            raise
        except jwt.ExpiredSignatureError:
            raise Unauthorized("the token has expired") from None
        except jwt.PyJWTError as error:
            raise Unauthorized(f"the token does not hold: {' '.join(str(error).split())[:200]}") from None
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise Unauthorized("the token cannot be read") from None
        return claims

    async def _fetch(self) -> None:
        """At most one at a time, and not right after another."""
        if self._fetching is None:
            if time.monotonic() - self._fetched < COOLDOWN:
                return
            self._fetching = asyncio.create_task(self._fetch_keys(), name="fetch keys")
        await asyncio.shield(self._fetching)

    async def _fetch_keys(self) -> None:
        assert self._client
        try:
            found = await asyncio.to_thread(self._client.fetch_data)
            # A secret that is published is none.
            keys = [key for key in jwk_set(found) if key.algorithm != "HS256" and not weakness(key.material)]
            if not keys:
                raise ConfigurationError(f"there is no key for {', '.join(ALGORITHMS[1:])}")
        except Exception as error:  # whatever an address may answer with
            self._report(f"ROWCAST_JWKS_URL: {' '.join(str(error).split())[:200] or type(error).__name__}")
        else:
            if keys != self._remote:
                logger.info("keys: %s", ", ".join(f"{key.id} ({key.algorithm})" for key in keys))
            self._remote = keys
            self._report(None)
        finally:
            self._fetched = time.monotonic()
            self._fetching = None

    def _report(self, problem: str | None) -> None:
        """One line a change of state."""
        if problem and self._problem != problem:
            logger.warning("keys: %s%s", problem, "; those of before are used on" if self._remote else "")
        self._problem = problem


def _header(token: str) -> dict[str, Any]:
    if len(token) > TOKEN_MOST:
        raise Unauthorized(f"the token is longer than {TOKEN_MOST} characters")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
        raise Unauthorized("the token is no JSON Web Token") from None
    if "crit" in header:
        raise Unauthorized("the token has extensions that must be understood, and are not")  # RFC 7515, 4.1.11
    return header
