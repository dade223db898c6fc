"""Rowcast turns committed PostgreSQL rows into live browser streams."""

__version__ = "0.1.0"
