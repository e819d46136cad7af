"""Backups of a ledger, and their restore, like an operator's: whole, and while others use the database."""

import sqlite3
from contextlib import closing
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo


def backup(url: str) -> str:
    """Copy a ledger as it is now; returns the copy's address. The ledger itself stays."""
    copy = f"{_path(url)}.{uuid4().hex}" if _is_file(url) else f"backup_{uuid4().hex}"
    return _copy(url, f"sqlite:///{copy}" if _is_file(url) else url.replace(f"/{_name(url)}?", f"/{copy}?"))


def restore(copy: str, url: str) -> None:
    """Restore the ledger from a copy. Its users go on with the old state."""
    _copy(copy, url)


def _copy(url: str, target: str) -> str:
    if _is_file(url):
        with closing(sqlite3.connect(_path(url))) as source, closing(sqlite3.connect(_path(target))) as there:
            source.backup(there)
        return target
    with psycopg.connect(make_conninfo(url, dbname="postgres"), autocommit=True) as connection:
        # Nobody may use a template meanwhile; disconnected users connect again.
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (_name(url),))
        connection.execute(f"DROP DATABASE IF EXISTS {_name(target)} WITH (FORCE)".encode())
        connection.execute(f"CREATE DATABASE {_name(target)} TEMPLATE {_name(url)}".encode())
    return target


def _is_file(url: str) -> bool:
    return url.startswith("sqlite:///")


def _path(url: str) -> str:
    return url.removeprefix("sqlite:///")


def _name(url: str) -> str:
    return str(conninfo_to_dict(url)["dbname"])
