"""All settings, in one table: name, default, help. Read from the environment and from `.env`."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from .errors import ConfigurationError

ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.ASCII)
"""As browsers write it (RFC 6454, section 6.2)."""

Seconds = Annotated[float, Field(gt=0, le=315_360_000, allow_inf_nan=False)]  # ten years


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or (host.startswith("127.") and host.replace(".", "").isdecimal())


class Settings(BaseSettings):
    """Durations are in seconds, sizes in bytes. Each is `ROWCAST_<NAME>`, except DATABASE_URL."""

    model_config = SettingsConfigDict(
        env_prefix="ROWCAST_", env_file=".env", env_ignore_empty=True, extra="ignore", populate_by_name=True, frozen=True
    )

    database_url: str = Field(validation_alias="DATABASE_URL", repr=False, description="postgresql://user:password@host:port/database")
    listen_url: str | None = Field(None, repr=False, description="where to LISTEN and sequence, if a pooler stands at DATABASE_URL")
    host: str = Field("127.0.0.1", description="address to bind")
    port: int = Field(8000, ge=0, le=65535, description="port to bind; 0 takes a free one")
    workers: int = Field(1, ge=1, le=64, description="processes; each has one LISTEN, one sequencer and one small pool")
    no_auth: bool = Field(False, description="let everybody read everything; on loopback only")
    key: SecretStr | None = Field(None, description="what tokens are checked with: a secret, or public keys as PEM or JWK")
    key_files: str | None = Field(None, description="files with such keys, separated by commas")
    jwks_url: str | None = Field(None, description="where the issuer of the tokens publishes its keys")
    issuer: str | None = Field(None, description="the iss that tokens must have")
    audience: str | None = Field(None, description="the aud that tokens must have")
    leeway: float = Field(5, ge=0, le=300, description="seconds by which the clock of the issuer may be wrong")
    claim: str = Field("rowcast", min_length=1, description="the claim of a token that says what it allows")
    cookie: str = Field("rowcast_token", pattern=r"^[A-Za-z0-9_-]+$", description="the cookie that holds a token")
    query_token: bool = Field(False, description="take a token from the query as well, where proxies log it")
    authorize: str | None = Field(None, description="package.module:function, which decides who may follow what")
    origins: str | None = Field(None, description="other origins whose pages may use the hub, separated by commas")
    proxies: str = Field("127.0.0.1,::1", description="addresses of proxies whose X-Forwarded-For is believed")
    expiring: Seconds = Field(60, description="how long before the end of its token a stream is told")
    connections: int = Field(50_000, ge=1, description="clients of one process")
    user_connections: int = Field(100, ge=1, description="of which one user has at most so many")
    session_connections: int = Field(10_000, ge=1, description="of which one session has at most so many")
    handshakes: int = Field(100, ge=0, description="new connections a second from one address; 0: any number")
    pool_size: int = Field(4, ge=1, le=64, description="connections for reading the log, however many clients there are")
    retention: Seconds = Field(86400, description="how long events are kept for clients that come back")
    recent_seconds: Seconds = Field(300, description="how far back a client without a cursor begins")
    recent_events: int = Field(1000, ge=1, le=100_000, description="with how many events at most")
    keepalive: Seconds = Field(15, description="time between keep-alive comments")
    retry: Seconds = Field(2, description="what EventSource waits before it reconnects; sent with jitter")
    buffer: int = Field(262_144, ge=4096, description="bytes unsent to one client before it counts as lagged")
    topics: int = Field(100, ge=1, le=10_000, description="topics that one connection may follow")
    heartbeat: Seconds = Field(5, description="time between NOTIFY round trips on the LISTEN connection, and their limit")
    tick: Seconds = Field(1, description="time between looks at the outbox without a doorbell, for crashes only")
    drain: Seconds = Field(5, description="time that streams get to end at shutdown")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")
    reference_tables: Literal["on", "off"] = Field(
        "on", description="off: migrations leave project, session, request, job, job_step and message alone"
    )

    @property
    def allowed_origins(self) -> list[str]:
        return [origin for origin in map(str.strip, (self.origins or "").split(",")) if origin]

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, text: str | None) -> str | None:
        for origin in filter(None, map(str.strip, (text or "").split(","))):
            if "*" in origin:
                raise ValueError("are named one by one: with * any page could read what its visitor may")
            if not ORIGIN.fullmatch(origin):
                raise ValueError("are like https://app.example.com, in lower case and without a path")
        return text

    @field_validator("jwks_url")
    @classmethod
    def _is_safe(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "https:")
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise ValueError("must begin with https://, or everybody on the way could give us keys")
        return url

    @field_validator("database_url", "listen_url")
    @classmethod
    def _is_postgresql(cls, url: str | None) -> str | None:
        if url is None:
            return None
        scheme, colon, rest = url.partition("://")
        if not colon or scheme.partition("+")[0] not in ("postgresql", "postgres"):
            raise ValueError("must begin with postgresql://")
        try:
            urlsplit(f"postgresql://{rest}").port  # noqa: B018
        except ValueError as error:
            raise ValueError(f"is no address: {error}") from None
        return f"postgresql://{rest}"


def load(**overrides: object) -> Settings:
    """The settings, or a ConfigurationError of one line that names the first wrong one."""
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        variable = "DATABASE_URL" if name.lower() == "database_url" else f"ROWCAST_{name.upper()}"
        if first["type"] == "missing":
            raise ConfigurationError(f"{variable} is not set; it takes {Settings.model_fields[name.lower()].description}") from None
        got = "" if "url" in name.lower() or "key" in name.lower() else f", not {first['input']!r}"
        raise ConfigurationError(f"{variable}: {first['msg'].removeprefix('Value error, ')}{got}") from None
