"""Which database is meant by what a user hands in."""

import re
from typing import Any

import asyncpg

from . import borrowed
from .connections import AsyncpgPool, Database, OwnPool, one_asyncpg_connection


def open_database(target: Any) -> Database:
    """`target`: a DSN, an asyncpg pool or connection, a SQLAlchemy engine or session (asynchronous or not), a psycopg
    connection (asynchronous or not) or asynchronous pool."""
    if isinstance(target, str):
        dsn = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", target)
        if not dsn.startswith("postgresql://"):
            raise ValueError("the DSN is to begin with postgresql://")
        return OwnPool(dsn)
    if isinstance(target, asyncpg.Pool):
        return AsyncpgPool(target)
    if isinstance(target, asyncpg.Connection):
        return one_asyncpg_connection(target)
    match type(target).__module__.partition(".")[0]:
        case "sqlalchemy":
            return borrowed.of_sqlalchemy(target)
        case "psycopg" | "psycopg_pool":
            return borrowed.of_psycopg(target)
    raise TypeError(f"{type(target).__name__} is no database: hand in a DSN, or an engine, session, pool or connection")
