"""All settings, in one table: name, default, help. Read from the environment and from `.env`."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from .errors import ConfigurationError

Seconds = Annotated[float, Field(gt=0, le=315_360_000, allow_inf_nan=False)]  # ten years


class Settings(BaseSettings):
    """Durations are in seconds, sizes in bytes. Each is `ROWCAST_<NAME>`, except DATABASE_URL."""

    model_config = SettingsConfigDict(
        env_prefix="ROWCAST_", env_file=".env", env_ignore_empty=True, extra="ignore", populate_by_name=True, frozen=True
    )

    database_url: str = Field(validation_alias="DATABASE_URL", description="postgresql://user:password@host:port/database")
    listen_url: str | None = Field(None, description="where to LISTEN and sequence, if a pooler stands at DATABASE_URL")
    host: str = Field("127.0.0.1", description="address to bind")
    port: int = Field(8000, ge=0, le=65535, description="port to bind; 0 takes a free one")
    workers: int = Field(1, ge=1, le=64, description="processes; each has one LISTEN, one sequencer and one small pool")
    no_auth: bool = Field(False, description="let everybody read everything; on loopback only")
    insecure: bool = Field(False, description="bind an address beyond loopback although nothing is protected yet")
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
        got = "" if "url" in name.lower() else f", not {first['input']!r}"
        raise ConfigurationError(f"{variable}: {first['msg'].removeprefix('Value error, ')}{got}") from None
