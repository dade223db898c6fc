"""From a token to a grant: JSON Web Tokens (RFC 7519), checked with keys that are bound to one algorithm each.

A token never chooses how it is checked (RFC 8725, 3.1): its `alg` only selects among keys of that algorithm, so that
a public key cannot be taken for a secret, and `none` fits no key.
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

from .errors import ConfigurationError, KeysUnavailable, Unauthorized
from .grant import Grant
from .settings import Settings

logger = logging.getLogger(__name__)

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
SECRET_LEAST = 32
"""Bytes of a secret, as many as its hash has (RFC 7518, 3.2)."""
RSA_LEAST = 2048
TOKEN_MOST = 8192
"""Characters of a token."""
FETCH_TIMEOUT = 5.0
KEYS_LIFE = 300.0
"""Seconds after which a JWKS URL is asked again."""
COOLDOWN = 5.0
"""Seconds between two times that it is asked: tokens that name keys of their own invention do not make us ask on."""


@dataclass(frozen=True, slots=True)
class Key:
    id: str | None
    algorithm: str
    material: Any

    def __repr__(self) -> str:
        return f"<Key {self.id}: {self.algorithm}>"


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


# Where keys come from


def configured_keys(settings: Settings) -> list[Key]:
    """Of the settings and of files. ConfigurationError of one line, which shows nothing of a key."""
    keys = []
    if settings.key is not None:
        keys += read_keys(settings.key.get_secret_value(), "ROWCAST_KEY")
    for name in filter(None, (part.strip() for part in (settings.key_files or "").split(","))):
        try:
            text = Path(name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"ROWCAST_KEY_FILES: {name}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
        keys += read_keys(text.strip(), f"ROWCAST_KEY_FILES: {name}")
    return keys


def read_keys(text: str, where: str) -> list[Key]:
    """Public keys as PEM, a JSON Web Key or a set of them (RFC 7517), or else a secret, if it looks like nothing that is known."""
    text = text.strip().lstrip("\ufeff").strip()
    if "PRIVATE KEY-----" in text:
        raise ConfigurationError(f"{where}: holds a private key; the hub needs the public one, and should have no other")
    if "-----BEGIN" in text:
        return [_pem(f"-----BEGIN{part}", where) for part in text.split("-----BEGIN")[1:]]
    if text.startswith("{"):
        try:
            keys = jwk_set(json.loads(text))
        except (ValueError, RecursionError):
            raise ConfigurationError(f"{where}: is no JSON Web Key") from None
        if not keys:
            raise ConfigurationError(f"{where}: has no key for {', '.join(ALGORITHMS)}")
        return [_strong(key, where) for key in keys]
    if problem := _is_no_secret(text):
        raise ConfigurationError(f"{where}: {problem}")
    return [_strong(Key(None, "HS256", text.encode()), where)]


def _is_no_secret(text: str) -> str | None:
    """What others know would be taken for one: whoever knows it could sign as they like."""
    if "://" in text:
        return "is an address: ROWCAST_JWKS_URL takes one"
    if text.startswith(("/", "./", "~/")):
        return "is a path: ROWCAST_KEY_FILES takes some"
    if text.startswith(("ssh-", "ecdsa-", "[", "{", "MII")) or _is_der(text):
        return "is a key in a form that is not known here: it takes PEM (-----BEGIN PUBLIC KEY-----) and JSON Web Keys"
    return None


def _is_der(text: str) -> bool:
    with suppress(ValueError, UnsupportedAlgorithm):
        load_der_public_key(base64.b64decode("".join(text.split()), altchars=b"-_" if set(text) & {"-", "_"} else None))
        return True
    return False


def _pem(text: str, where: str) -> Key:
    try:
        material = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(f"{where}: is no public key in PEM (-----BEGIN PUBLIC KEY-----)") from None
    algorithm = _algorithm_of(material)
    if algorithm is None:
        raise ConfigurationError(f"{where}: is a key of a kind that is not known: it takes RSA, P-256 and Ed25519")
    return _strong(Key(None, algorithm, material), where)


def _algorithm_of(material: object) -> str | None:
    if isinstance(material, RSAPublicKey):
        return "RS256"
    if isinstance(material, EllipticCurvePublicKey) and isinstance(material.curve, SECP256R1):
        return "ES256"
    return "EdDSA" if isinstance(material, Ed25519PublicKey) else None


def _strong(key: Key, where: str) -> Key:
    if problem := weakness(key.material):
        raise ConfigurationError(f"{where}: {problem}")
    return key


def weakness(material: object) -> str | None:
    if isinstance(material, bytes) and len(material) < SECRET_LEAST:
        return f"a secret has {SECRET_LEAST} bytes or more, not {len(material)}: `rowcast key` makes one"
    if isinstance(material, RSAPublicKey) and material.key_size < RSA_LEAST:
        return f"an RSA key has {RSA_LEAST} bits or more, not {material.key_size}"
    return None


def jwk_set(found: Any) -> list[Key]:
    """Those of a JSON Web Key Set, or the one key, that tokens may be signed with; what is of another kind is passed over."""
    listed = found.get("keys", [found]) if isinstance(found, dict) else []
    return list(_usable(listed if isinstance(listed, list) else []))


def _usable(listed: Iterable[Any]) -> Iterable[Key]:
    for each in listed:
        with suppress(jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
            if each.get("use", "sig") != "sig" or "verify" not in each.get("key_ops", ["verify"]):
                continue
            key = jwt.PyJWK(each)
            algorithm = "HS256" if isinstance(key.key, bytes) else _algorithm_of(key.key)
            if algorithm and key.algorithm_name == algorithm:
                id = each.get("kid")
                yield Key(id if isinstance(id, str) else None, algorithm, key.key)
