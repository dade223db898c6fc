"""Making tokens, for whoever tries things out or has a shared secret: `rowcast key`, `rowcast token`, `rowcast dev`."""

import secrets
import time
from collections.abc import Mapping
from typing import Any

import jwt

from .errors import ConfigurationError, Unauthorized
from .grant import Grant
from .keys import read_keys
from .settings import Settings

SECRET_BYTES = 32


def new_secret() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


def own_key() -> dict[str, Any]:
    """Settings of a hub that takes the tokens of this process."""
    return {"key": new_secret(), "no_auth": False}


def make(settings: Settings, subject: str, allowed: Mapping[str, Any], seconds: float) -> str:
    """A token that such a hub takes. ConfigurationError where there is no secret, or it would be no grant."""
    now = time.time()
    claims: dict[str, Any] = {"sub": subject, "iat": now, "exp": now + seconds, "jti": secrets.token_hex(8)}
    if settings.issuer:
        claims["iss"] = settings.issuer
    if settings.audience:
        claims["aud"] = settings.audience
    if named := {name: value for name, value in allowed.items() if value}:
        claims[settings.claim] = named
    try:
        Grant.of(claims, settings.claim)
    except Unauthorized as error:
        raise ConfigurationError(str(error)) from None
    if settings.key is None:
        raise ConfigurationError("ROWCAST_KEY is not set; a token is signed with its secret")
    (key, *_) = read_keys(settings.key.get_secret_value(), "ROWCAST_KEY")
    if key.algorithm != "HS256":
        raise ConfigurationError("ROWCAST_KEY is a public key: whoever has the private one makes the tokens")
    return jwt.encode(claims, key.material, algorithm="HS256")
