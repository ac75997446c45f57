"""What is read from DATABASE_URL for sessions of Postgres: options, and several hosts."""

from __future__ import annotations

import pytest
import redis
import sqlalchemy as sa

from batch.postgres import describe, open_engine, source_error
from batch.postgres_session import SessionOptions, parse_url
from batch.redis_client import readable_errors
from contract.errors import SettingsError, StoreError
from contract.settings import Settings


@pytest.mark.parametrize(
    ("options", "settings", "rest"),
    [
        ("", (), ""),
        ("-c statement_timeout=5min", (("statement_timeout", "5min"),), ""),
        ("-cwork_mem=64MB  --jit=off", (("work_mem", "64MB"), ("jit", "off")), ""),
        ("--statement-timeout=5", (("statement_timeout", "5"),), ""),
        ("-c search_path=a,b -c app.name=x=y", (("search_path", "a,b"), ("app.name", "x=y")), ""),
        (r"-c app.name=two\ words\\ -c a.b=", (("app.name", "two words\\"), ("a.b", "")), ""),
        ("endpoint=ep-cool-123", (), "endpoint=ep-cool-123"),
        ("project=p -c jit=off -e", (("jit", "off"),), "project=p -e"),
    ],
)
def test_options_are_split_as_postgres_does(
    options: str, settings: tuple[tuple[str, str], ...], rest: str
) -> None:
    assert SessionOptions.parse(options) == SessionOptions(settings, rest)


@pytest.mark.parametrize(
    ("netloc", "hosts", "ports"),
    [
        ("h1:5433,h2:5434", "h1,h2", "5433,5434"),
        ("h1,h2:5434", "h1,h2", ",5434"),
        ("u:p%2C%40@h1,h2", "h1,h2", ","),
        ("[::1]:5433,[fe80::1],10.0.0.1:5434", "::1,fe80::1,10.0.0.1", "5433,,5434"),
    ],
)
def test_several_hosts_stand_as_libpq_has_them(netloc: str, hosts: str, ports: str) -> None:
    text = f"postgresql://{netloc}/db?target_session_attrs=read-write"
    Settings.from_environment({"DATABASE_URL": text})
    engine = open_engine(Settings.of(database_url=text))
    (_, arguments) = engine.dialect.create_connect_args(engine.url)
    assert (arguments["host"], arguments["port"], arguments["dbname"]) == (hosts, ports, "db")
    assert arguments["target_session_attrs"] == "read-write"
    if "@" in netloc:
        assert (arguments["user"], arguments["password"]) == ("u", "p,@")


def test_one_host_is_parsed_as_before() -> None:
    for text in ("postgresql://u:p@h:5433/d?a=b,c", "postgresql:///d?host=/x,/y", "postgresql://h/d,e"):
        assert parse_url(text) == sa.make_url(text)


@pytest.mark.parametrize("netloc", ["h1:5433,h2:port", "h1:p,h2:p"])
def test_ports_that_are_no_numbers_are_refused(netloc: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        Settings.from_environment({"DATABASE_URL": f"postgresql://{netloc}/db"})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:secret@h:5433/d?password=secret2", "Postgres at h:5433, database d"),
        ("postgresql://me:secret@h1:5433,h2/d", "Postgres at h1:5433, h2, database d"),
        (
            "postgresql://me@/?host=/run/postgresql",
            "Postgres at /run/postgresql, the role's database",
        ),
    ],
)
def test_a_server_is_described_without_user_and_password(url: str, expected: str) -> None:
    assert describe(Settings.of(database_url=url)) == expected


def test_a_url_that_is_not_set_is_named_when_nothing_answers_at_its_default() -> None:
    unset, set_ = (
        Settings.from_environment({"DATABASE_URL": ""}),
        Settings.of(database_url="postgresql://h/d"),
    )
    assert "DATABASE_URL is not set, or is its default: set it" in str(source_error(unset, None, "refused"))
    assert "is not set" not in str(source_error(set_, None, "refused"))
    assert "is not set" not in str(source_error(unset, "42501", "no right"))
    with pytest.raises(StoreError, match="REDIS_URL is not set, or is its default"), readable_errors(unset):
        raise redis.ConnectionError("refused")
