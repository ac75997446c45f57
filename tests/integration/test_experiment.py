"""The split of the users: the same in serving, batch and SQL, changed and recorded by commands."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
import redis
import sqlalchemy as sa

from batch.context import Stores
from batch.experiment.history import bucket_sql, read_changes, variant_sql
from batch.experiment.split import write_back
from batch.inspection.lists import read_experiment
from batch.postgres import open_engine
from batch.runs import ledger
from contract.codec import decode_object, encode_object
from contract.errors import SourceError
from contract.experiment import CONTROL, TEST, Experiment
from contract.keys import Keys
from contract.score_kind import PERSONAL
from contract.settings import Settings
from serving.state import Run, State
from serving.texts import Texts
from tests.support.batch import TABLES, execute, run_here
from tests.support.serving import (
    CONTROL_RUN,
    NEXT_CONTROL_RUN,
    TEST_RUN,
    publish,
    recommend,
    refresh,
    serving,
    settings_for,
    wait_until,
)
from tests.support.serving import PERSONAL as POSTS

KEYS = Keys()
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MANY = 100_000
SOMEONE = "0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11"
NAMING_USERS = ("users", "interactions")


@dataclass(frozen=True)
class Servers:
    """A database with the schema, an empty Redis, and the command line over both."""

    settings: Settings
    engine: sa.Engine
    client: redis.Redis

    @property
    def stores(self) -> Stores:
        return Stores(self.settings, self.engine, self.client, "a night")

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run `python -m batch experiment ...`; return stdout, or stderr where it must fail."""
        servers = {
            "database_url": self.settings.stores.database_url,
            "redis_url": self.settings.stores.redis_url,
        }
        done = run_here("experiment", *arguments, **servers, model_dir=Path(self.settings.night.model_dir))
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    def stored(self) -> Experiment:
        """Return what serving would go by."""
        return Experiment.from_fields(decode_object(str(self.client.get(KEYS.experiment))))

    def history(self) -> list[Experiment]:
        """Return what is recorded, newest first."""
        with self.engine.connect() as connection:
            return [change.experiment for change in read_changes(connection, KEYS.prefix)]

    def write_back(self, now: datetime = NOW) -> None:
        """Do what a night does."""
        write_back(self.stores, now)


@pytest.fixture
def servers(
    database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> Iterator[Servers]:
    execute(database_url, TABLES)
    settings = Settings.of(database_url=database_url, redis_url=redis_url, model_dir=str(tmp_path))
    engine = open_engine(settings)
    ledger.create(engine)
    yield Servers(settings, engine, redis_client)
    engine.dispose()


# The rule


def variants_in_sql(engine: sa.Engine, experiment: Experiment, users: range) -> list[str]:
    """Let Postgres say the variants, by the SQL that analysts are shown."""
    query = f"""
        SELECT {variant_sql("user_id", experiment)} FROM generate_series({users[0]}, {users[-1]}) AS user_id
        ORDER BY user_id
    """
    with engine.connect() as connection:
        return list(connection.exec_driver_sql(query, execution_options={"no_parameters": True}).scalars())


def test_serving_batch_sql_and_the_clients_agree_on_100_000_users(servers: Servers) -> None:
    salt, percent = "my_salt", 37
    published = [int(hashlib.md5((str(user) + salt).encode()).hexdigest(), 16) % 100 for user in range(MANY)]
    by_clients = [TEST if bucket < percent else CONTROL for bucket in published]
    servers.run("set", "--name", "first", "--salt", salt, "--percent-test", str(percent))
    split = read_experiment(servers.stores)
    runs = {variant: Run(f"20261122T030000Z-{variant}", variant, NOW, []) for variant in (CONTROL, TEST)}
    state = State(runs, split, frozenset(), Texts({}))
    assert [state.assign(user).run.variant for user in range(MANY)] == by_clients
    assert [split.variant_of(user) for user in range(MANY)] == by_clients
    assert variants_in_sql(servers.engine, split, range(MANY)) == by_clients
    with servers.engine.connect() as connection:
        query = f"SELECT {bucket_sql('user_id', ':salt')} FROM generate_series(0, {MANY - 1}) AS user_id"
        assert list(connection.scalars(sa.text(query), {"salt": salt})) == published


def text_ids(count: int) -> list[str]:
    """Return ids of every length, with every printable character of ASCII and others."""
    random = Random(1)
    some = [*map(chr, range(32, 127)), *"üñж漢\U0001f600"]
    return ["".join(random.choices(some, k=1 + number % 128)) for number in range(count)]


@pytest.mark.parametrize(
    ("kind", "ids", "written"),
    [
        ("uuid", [str(UUID(int=Random(number).getrandbits(128))) for number in range(2_000)], str.upper),
        ("text", text_ids(2_000), str),
        ("varchar", text_ids(50), str),
        ("char(130)", [text.strip() or "x" for text in text_ids(50)], str),
    ],
)
def test_sql_agrees_on_uuids_and_text(
    servers: Servers, kind: str, ids: list[str], written: Callable[[str], str]
) -> None:
    split = Experiment("any", "it's 100%", 37, {ids[0]: TEST, ids[1]: CONTROL, "42": TEST})
    statement = f"SELECT {variant_sql('user_id', split)} FROM given ORDER BY position"
    with servers.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TEMP TABLE given (position int, user_id {kind})")
        rows = [(position, written(user)) for position, user in enumerate(ids)]
        connection.exec_driver_sql("INSERT INTO given VALUES (%s, %s)", rows)
        found = connection.exec_driver_sql(statement, execution_options={"no_parameters": True}).scalars()
        assert list(found) == [split.variant_of(user) for user in ids]


@pytest.mark.parametrize("salt", ["o'clock", "соль", "100%", ":x ::y", "\\"])
def test_sql_takes_any_salt_and_any_user_and_knows_who_is_pinned(servers: Servers, salt: str) -> None:
    users = range(2**63 - 300, 2**63 - 1)
    split = Experiment("odd", salt, 50, {str(users[0]): TEST, str(users[1]): CONTROL})
    assert variants_in_sql(servers.engine, split, users) == [split.variant_of(user) for user in users]


# The commands


def test_the_first_set_starts_from_the_settings_and_every_change_is_recorded(servers: Servers) -> None:
    assert servers.run("show").startswith("no experiment is recorded; Redis has nothing")
    servers.run("set", "--percent-test", "10")
    assert servers.stored() == Experiment("default", "overnight", 10)
    servers.run("pin", "42", "test")
    output = servers.run("set", "--percent-test", "30")
    assert "the same experiment: 20 % of users go to test" in output
    assert "42 test" in output
    servers.run("unpin", "42")
    shown = json.loads(servers.run("show", "--json"))
    assert [(row["percent_test"], row["pins"]) for row in shown["history"]] == [
        (30, {}), (30, {"42": "test"}), (10, {"42": "test"}), (10, {}),
    ]  # fmt: skip
    times = [datetime.fromisoformat(row["set_at"]) for row in shown["history"]]
    assert times == sorted(times, reverse=True)
    assert abs(times[0] - datetime.now(UTC)) < timedelta(minutes=10)
    assert shown["history"][0]["actor"].startswith("batch experiment unpin by ")
    assert shown["began_at"] == shown["history"][-1]["set_at"]
    assert shown["in_force"] == shown["history"][0]
    assert shown["redis"]["agrees"] is True
    text = servers.run("show")
    assert "default: 30 % of users in test, salt 'overnight'" in text
    assert "Redis has the same" in text


def test_the_days_planned_stay_with_their_experiment_and_serving_is_not_told_of_them(
    servers: Servers,
) -> None:
    output = servers.run("set", "--name", "first", "--percent-test", "50", "--days", "14")
    assert "planned for 14 days from now on" in output
    servers.run("pin", "42", "test")
    servers.run("set", "--percent-test", "60")
    assert "nothing changed" in servers.run("set", "--days", "14")
    assert "it was 14 when the split was set, and reports say so" in servers.run("set", "--days", "21")
    shown = json.loads(servers.run("show", "--json"))
    began, ends = (
        datetime.fromisoformat(each) for each in (shown["history"][1]["set_at"], shown["planned_end"])
    )
    assert (shown["in_force"]["planned_days"], ends - began) == (21, timedelta(days=21))
    assert "planned for 21 days, until" in servers.run("show")
    assert "no end is planned" in servers.run("set", "--name", "second")
    assert json.loads(servers.run("set", "--salt", "new", "--days", "7", "--json"))["planned_days"] == 7
    shown = json.loads(servers.run("show", "--json"))
    assert [row["planned_days"] for row in shown["history"]] == [7, None, 21, 14, 14, 14]
    assert "days" not in str(servers.client.get(KEYS.experiment))


def test_a_set_that_changes_nothing_is_not_recorded_but_tells_redis_again(servers: Servers) -> None:
    servers.run("set", "--percent-test", "10")
    servers.client.delete(KEYS.experiment)
    assert "nothing changed" in servers.run("set", "--percent-test", "10")
    assert servers.stored().percent_test == 10
    assert len(servers.history()) == 1
    assert "nothing changed" in servers.run("unpin", "42")
    assert len(servers.history()) == 1


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [("--salt", "pepper", "users are assigned anew"), ("--name", "second", "the same users are in test")],
)
def test_another_name_or_salt_is_said_to_be_a_new_experiment(
    servers: Servers, option: str, value: str, text: str
) -> None:
    servers.run("set", "--name", "first", "--salt", "salt", "--percent-test", "50")
    output = servers.run("set", option, value)
    assert "a new experiment begins: exposures and likes under first do not count for it" in output
    assert text in output
    assert ("give each experiment a name of its own" in output) is (option == "--salt")
    shown = json.loads(servers.run("show", "--json"))
    assert shown["began_at"] == shown["history"][0]["set_at"]
    assert json.loads(servers.run("set", "--percent-test", "60", "--json"))["new_experiment"] is False


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["set"], "Give at least one of --name, --salt, --percent-test and --days"),
        (["set", "--days", "0"], "1<=x<=365"),
        (["set", "--days", "366"], "1<=x<=365"),
        (["set", "--percent-test", "101"], "0<=x<=100"),
        (["set", "--percent-test", "-1"], "0<=x<=100"),
        (["set", "--percent-test", "ten"], "'ten' is not a valid integer"),
        (["set", "--name", " "], "1 to 100 printable characters"),
        (["set", "--salt", "a\nb"], "1 to 100 printable characters"),
        (["set", "--salt", "a" * 101], "1 to 100 printable characters"),
        (["pin", "42", "best"], "'best' is not one of 'control', 'test'"),
        (["pin", "somebody", "test"], "'somebody' must be a whole number"),
        (["pin", str(2**63), "test"], "must be a whole number from 0"),
        (["unpin", "1.5"], "must be a whole number"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_and_changes_nothing(
    servers: Servers, arguments: list[str], text: str
) -> None:
    (line,) = servers.run(*arguments, code=2).splitlines()
    assert line.startswith("error: ")
    assert text in line
    assert (servers.history(), servers.client.get(KEYS.experiment)) == ([], None)


@pytest.mark.parametrize(
    ("kind", "given", "pinned", "wrong"),
    [
        ("uuid", f"{{{SOMEONE.upper()}}}", SOMEONE, (SOMEONE[:-1], "must be a uuid")),
        ("text", "o'neill/%", "o'neill/%", ("x" * 129, "must be text of 1 to 128 characters")),
    ],
)
def test_a_user_of_any_kind_is_pinned_and_pins_of_another_kind_can_be_taken_back(
    servers: Servers, kind: str, given: str, pinned: str, wrong: tuple[str, str]
) -> None:
    servers.run("pin", "42", "test")
    tables = [f"ALTER TABLE recs.{table} ALTER user_id TYPE {kind} USING NULL" for table in NAMING_USERS]
    execute(servers.settings.stores.database_url, *tables)
    assert wrong[1] in servers.run("pin", wrong[0], "test", code=2)
    assert json.loads(servers.run("pin", given, "control", "--json"))["pins"] == {
        "42": TEST, pinned: CONTROL,
    }  # fmt: skip
    assert servers.stored().pins == {"42": TEST, pinned: CONTROL}
    assert servers.stored().variant_of(pinned) == CONTROL
    assert pinned in servers.run("show")
    servers.run("unpin", "42")
    servers.run("unpin", given)
    assert servers.stored().pins == {}


def test_when_redis_does_not_take_a_change_it_is_not_recorded_either(servers: Servers) -> None:
    servers.run("set", "--percent-test", "10")
    servers.client.config_set("min-replicas-to-write", 1)
    try:
        assert "NOREPLICAS" in servers.run("set", "--percent-test", "20", code=1)
    finally:
        servers.client.config_set("min-replicas-to-write", 0)
    assert [split.percent_test for split in servers.history()] == [10]
    assert servers.stored().percent_test == 10


# Postgres is the truth


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda client: client.flushall(), "Redis has nothing, and serving keeps the split it had"),
        (lambda client: client.set(KEYS.experiment, "{"), "Redis has a value that cannot be read"),
        (lambda client: client.rename(KEYS.experiment, "x") and client.sadd(KEYS.experiment, "1"),
         "(the key is not a string), and serving keeps the split it had"),
        (lambda client: client.set(KEYS.experiment, '{"name":"mine","salt":"s","percent_test":99}'),
         "Redis has mine: 99 % of users in test, salt 's', and serving uses that"),
    ],
)  # fmt: skip
def test_what_happens_to_redis_is_shown_and_the_next_night_writes_back_what_is_recorded(
    servers: Servers, caplog: pytest.LogCaptureFixture, spoil: Any, text: str
) -> None:
    servers.run("set", "--percent-test", "10")
    servers.run("pin", "7", "test")
    spoil(servers.client)
    shown = servers.run("show")
    assert text in shown
    assert "at once: python -m batch experiment set --percent-test 10" in shown
    servers.write_back()
    servers.write_back()
    assert servers.stored() == Experiment("default", "overnight", 10, {"7": TEST})
    assert len(servers.history()) == 2
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == (not text.startswith("Redis has nothing"))
    assert all("which `experiment set` did not write" in message for message in warned)


def test_what_redis_had_before_there_was_a_record_is_taken_over(servers: Servers) -> None:
    split = Experiment("by hand", "s", 25)
    servers.client.set(KEYS.experiment, encode_object(split.to_fields()))
    servers.write_back()
    assert servers.history() == [split]
    assert servers.stored() == split


def test_a_first_night_records_the_split_of_the_settings(servers: Servers) -> None:
    servers.write_back()
    assert servers.history() == [servers.stored()] == [Experiment("default", "overnight", 50)]


def test_a_change_is_the_newest_even_if_the_clock_went_back(servers: Servers) -> None:
    servers.write_back(datetime.now(UTC) + timedelta(days=1))
    servers.run("set", "--percent-test", "0")
    assert [split.percent_test for split in servers.history()] == [0, 50]


def test_a_recorded_split_that_was_spoilt_by_hand_is_named(servers: Servers) -> None:
    servers.run("pin", "7", "test")
    execute(servers.settings.stores.database_url, """UPDATE recs.experiments SET pins = '{"7": "other"}'""")
    with pytest.raises(SourceError, match="user 7 is pinned to 'other', which is not a variant; serving"):
        servers.write_back()


def test_two_prefixes_of_one_database_have_a_split_each(servers: Servers) -> None:
    servers.run("set", "--percent-test", "10")
    other = servers.settings.replace(key_prefix="other", percent_test=70)
    write_back(Stores(other, servers.engine, servers.client, "a night"), NOW)
    assert [split.percent_test for split in servers.history()] == [10]
    assert decode_object(str(servers.client.get("other:experiment")))["percent_test"] == 70


# What serving makes of it


def test_a_set_reaches_serving_within_two_seconds_without_a_run_and_0_and_100_put_everyone_in_one(
    servers: Servers,
) -> None:
    users = range(50)
    for run_id in (CONTROL_RUN, TEST_RUN):
        publish(servers.client, run_id, dict.fromkeys(users, POSTS))
    with serving(settings_for(servers.settings.stores.redis_url, state_refresh_seconds=0.05)) as app:

        def served() -> set[str]:
            answers = [recommend(app, user) for user in users]
            assert all(answer["source"] == PERSONAL for answer in answers)
            assert all(answer["variant"] == answer["assigned_variant"] for answer in answers)
            return {answer["variant"] for answer in answers}

        for percent, variants in (("50", {CONTROL, TEST}), ("100", {TEST}), ("0", {CONTROL})):
            servers.run("set", "--percent-test", percent)
            wait_until(lambda variants=variants: served() == variants, seconds=2)
        servers.run("pin", "7", "test")
        wait_until(lambda: recommend(app, 7)["variant"] == TEST, seconds=2)
        assert {recommend(app, user)["variant"] for user in users if user != 7} == {CONTROL}


def test_each_variant_goes_live_and_back_alone_and_a_variant_without_a_run_gets_the_others_lists(
    servers: Servers,
) -> None:
    split = Experiment("half", "salt", 50)
    users = {split.variant_of(user): user for user in range(20)}
    servers.client.set(KEYS.experiment, encode_object(split.to_fields()))
    lists = dict.fromkeys(users.values(), POSTS)
    publish(servers.client, CONTROL_RUN, lists)
    with serving(settings_for(servers.settings.stores.redis_url)) as app:

        def answered(variant: str) -> tuple[str, str, str]:
            answer = recommend(app, users[variant])
            return answer["assigned_variant"], answer["variant"], answer["run_id"]

        def counted() -> float:
            found = re.search(r'other_variant_total{assigned="test"} (\S+)', metrics(app))
            return float(found[1]) if found else 0.0

        assert answered(CONTROL) == (CONTROL, CONTROL, CONTROL_RUN)
        assert answered(TEST) == (TEST, CONTROL, CONTROL_RUN)
        compat = app.test_client().get(f"/post/recommendations/?id={users[TEST]}").get_json()
        assert compat["exp_group"] == CONTROL
        assert set(compat) == {"exp_group", "recommendations"}
        assert counted() == 2
        publish(servers.client, TEST_RUN, lists)
        refresh(app)
        assert answered(TEST) == (TEST, TEST, TEST_RUN)
        publish(servers.client, NEXT_CONTROL_RUN, lists)
        refresh(app)
        assert answered(CONTROL)[2] == NEXT_CONTROL_RUN
        assert answered(TEST)[2] == TEST_RUN
        servers.client.set(KEYS.live(CONTROL), CONTROL_RUN)  # as a rollback does
        refresh(app)
        assert answered(CONTROL)[2] == CONTROL_RUN
        assert answered(TEST)[2] == TEST_RUN
        assert counted() == 2


def metrics(app: Any) -> str:
    """Return the metrics in Prometheus's text format."""
    return str(app.test_client().get("/metrics").get_data(as_text=True))
