"""The keys that tokens are checked with: from settings and files, as PEM, as JSON Web Keys (RFC 7517), or a secret."""

import base64
import json
from collections.abc import Iterable
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

from .errors import ConfigurationError
from .settings import Settings

ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")
SECRET_LEAST = 32
"""Bytes of a secret, as many as its hash has (RFC 7518, 3.2)."""
RSA_LEAST = 2048


@dataclass(frozen=True, slots=True)
class Key:
    id: str | None
    algorithm: str
    material: Any

    def __repr__(self) -> str:
        return f"<Key {self.id}: {self.algorithm}>"


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
