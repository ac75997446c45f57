import hashlib
import json
import logging
import math
import re
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.codec import decode_list, decode_object, decode_stored_list, encode_list, encode_object
from contract.errors import SettingsError
from contract.experiment import CONTROL, NO_EXPERIMENT, TEST, Experiment
from contract.ids import Id, IdKind, IdKinds
from contract.keys import Keys
from contract.logs import configure_logging, redact
from contract.manifest import Manifest
from contract.run_id import is_run_id, make_run_id, parse_run_id
from contract.settings import Settings, unknown_variables

NUMBERS = st.integers(min_value=0, max_value=2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=128)
SCORES = st.floats(min_value=-1e6, max_value=1e6)
RANKED = st.one_of(
    st.lists(st.tuples(ids, SCORES), max_size=20) for ids in (NUMBERS, st.uuids().map(str), TEXTS)
)


@given(RANKED)
def test_a_list_decodes_to_what_was_encoded_within_half_a_thousandth(posts: list[tuple[Id, float]]) -> None:
    decoded = decode_list(encode_list(posts))
    assert [post for post, _ in decoded] == [post for post, _ in posts]
    for (_, found), (_, score) in zip(decoded, posts, strict=True):
        assert found == pytest.approx(score, abs=0.000501)


@given(RANKED)
def test_bytes_and_white_space_make_no_difference_to_a_list(posts: list[tuple[Id, float]]) -> None:
    text = encode_list(posts)
    for stored in (text.encode(), text.replace("],[", "] , [") + "\n"):
        assert decode_list(stored) == decode_list(text)


def test_a_list_reads_well() -> None:
    assert encode_list([(7, -1.23456), (9, 12.0), (3, 0.5)]) == "[[7,-1.235],[9,12],[3,0.5]]"
    assert encode_list([("a b", 1.0), ("7", 0.5)]) == '[["a b",1],["7",0.5]]'
    assert encode_list([("é", 1.0)]) == r'[["\u00e9",1]]'


def test_a_list_keeps_the_probability_of_an_explored_place() -> None:
    text = encode_list([(7, 2.0), (9, 1.0, 0.025), (8, 0.5, 1)])
    assert text == "[[7,2],[9,1,0.025],[8,0.5,1]]"
    assert decode_stored_list(text) == ([(7, 2.0), (9, 1.0), (8, 0.5)], {1: 0.025, 2: 1.0})
    assert decode_list(text) == [(7, 2.0), (9, 1.0), (8, 0.5)]
    assert decode_stored_list("[[7,2]]").probabilities == {}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ('[["7",2]]', IdKind.NUMBER),
        ("[[7,2]]", IdKind.TEXT),
        ("[[7,2]]", IdKind.UUID),
        ('[["7",2],[7,1]]', None),
        ('[[7,2],["7",1]]', None),
    ],
)
def test_a_list_has_ids_of_one_kind(value: str, kind: IdKind | None) -> None:
    with pytest.raises(ValueError, match="not a list of"):
        decode_list(value, kind)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_cannot_be_encoded(score: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        encode_list([(1, score)])


NO_LISTS = (
    *("", "{}", "null", "7", "[1]", "[[1]]", "[[]]", "[{}]", "[[1.5,2]]", "[[true,2]]", "[[null,2]]"),
    *("[[1,2,3]]", "[[1,2,0]]", "[[1,2,true]]", "[[1,2,0.5,1]]", "[[1,NaN]]", "[[1,1e999]]", "[" * 100_000),
)


@pytest.mark.parametrize("value", NO_LISTS)
def test_what_is_no_list_is_refused(value: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any message will do
        decode_list(value)


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_an_object_decodes_to_what_was_encoded(fields: dict[str, str | int | None]) -> None:
    assert decode_object(encode_object(fields)) == fields


def test_the_variant_is_the_md5_bucket_below_the_percentage() -> None:
    experiment = Experiment("first", "pepper", 30)
    for user_id in (0, 1, 42, 163205, 2**63 - 1, "0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11", "ä/🐑", "42"):
        bucket = int(hashlib.md5(f"{user_id}pepper".encode()).hexdigest(), 16) % 100
        assert experiment.variant_of(user_id) == (TEST if bucket < 30 else CONTROL)


def test_percent_0_and_100_put_everyone_in_one_variant() -> None:
    for percent, variant in ((0, CONTROL), (100, TEST)):
        experiment = Experiment("all", "salt", percent)
        assert {experiment.variant_of(user_id) for user_id in range(1000)} == {variant}
    assert {NO_EXPERIMENT.variant_of(user_id) for user_id in range(1000)} == {CONTROL}


def test_a_pinned_user_gets_that_variant_whatever_the_percentage() -> None:
    for percent in (0, 30, 100):
        experiment = Experiment("first", "pepper", percent, {"1": TEST, "2": CONTROL, "a b": TEST})
        pinned = [experiment.variant_of(user_id) for user_id in (1, 2, "a b")]
        assert pinned == [TEST, CONTROL, TEST]
        without = Experiment("first", "pepper", percent)
        assert [experiment.variant_of(user) for user in range(3, 300)] == [
            without.variant_of(user) for user in range(3, 300)
        ]


WHOLE = {"name": "a", "salt": "b", "percent_test": 5}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": "a", "salt": "b"},
        WHOLE | {"percent_test": None},
        WHOLE | {"percent_test": 101},
        WHOLE | {"pins": ["42"]},
        WHOLE | {"pins": {"42": "tset"}},
        WHOLE | {"pins": {"": "test"}},
        WHOLE | {"pins": {"some\nbody": "test"}},
    ],
)
def test_a_stored_experiment_with_a_field_that_is_missing_or_wrong_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"percent_test|name|pin"):
        Experiment.from_fields(fields)


@pytest.mark.parametrize("pins", [{}, {"42": TEST, "7": CONTROL}, {"ä/🐑": TEST}])
def test_an_experiment_survives_being_stored(pins: dict[str, str]) -> None:
    experiment = Experiment("first", "pepper", 30, pins)
    assert Experiment.from_fields(decode_object(encode_object(experiment.to_fields()))) == experiment


def test_pins_of_whole_numbers_are_stored_in_their_order() -> None:
    pins = {"10": TEST, "9": CONTROL, "007": TEST, "100": TEST}
    assert list(Experiment("first", "pepper", 30, pins).to_fields()["pins"]) == ["9", "10", "007", "100"]


def test_an_experiment_without_pins_is_stored_as_it_was_before_there_were_pins() -> None:
    assert list(Experiment("first", "pepper", 30).to_fields()) == ["name", "salt", "percent_test"]


@given(
    st.datetimes(datetime(1970, 1, 1), datetime(9998, 1, 1), timezones=st.just(timezone(timedelta(hours=3)))),
    st.sampled_from([CONTROL, TEST]),
)
def test_a_run_id_tells_its_time_and_variant(begun_at: datetime, variant: str) -> None:
    run_id = make_run_id(begun_at, variant)
    assert is_run_id(run_id)
    assert parse_run_id(run_id) == (begun_at.replace(microsecond=0), variant)


def test_every_key_begins_with_the_prefix() -> None:
    keys = Keys("p")
    run_keys = [keys.user("R", 7), keys.popular("R"), keys.manifest("R"), keys.run_pattern("R")]
    lasting = [keys.posts, keys.experiment, keys.blocked, keys.gone, keys.exposures, keys.help]
    run_keys.append(keys.segments("R"))
    for key in [*run_keys, keys.live("control"), *lasting]:
        assert key.startswith("p:")
    assert keys.user("R", 7) == "p:run:R:user:7"
    assert keys.user("R", "a:b c/é@~") == "p:run:R:user:a%3Ab%20c%2F%C3%A9@~"
    assert keys.post("R", "0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11").endswith("-6f0a3a3c8a11")


def test_a_manifest_keeps_the_kinds_of_ids_and_an_old_one_has_whole_numbers() -> None:
    kinds = IdKinds(IdKind.UUID, IdKind.TEXT)
    manifest = Manifest("R", ids=kinds, popular_by="country")
    assert manifest.to_record()["ids"] == {"users": "uuid", "posts": "text"}
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_record({"run_id": "R"}).ids == IdKinds()
    with pytest.raises(ValueError, match="oid"):
        Manifest.from_record({"run_id": "R", "ids": {"users": "oid"}})


def test_every_default_passes_its_own_check() -> None:
    defaults = {row["env"]: row["default"] for row in Settings.declared()}
    assert Settings.from_environment(defaults) == Settings.from_environment({}) == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "mysql://host/db"),
        ("DATABASE_URL", "postgresql://u:p@ss#w/d@host/db"),
        ("DATABASE_URL", "postgresql://u:p/ss@host/db"),
        ("REDIS_URL", "localhost:6379"),
        ("OVERNIGHT_KEY_PREFIX", "a b"),
        ("OVERNIGHT_KEY_PREFIX", "a*"),
        ("OVERNIGHT_TOP_N", "0"),
        ("OVERNIGHT_TOP_N", "many"),
        ("OVERNIGHT_MEMORY_BUDGET_MIB", "-1"),
        ("OVERNIGHT_HOLDOUT_FRACTION", "nan"),
        ("OVERNIGHT_HOLDOUT_FRACTION", "0.94"),
        ("OVERNIGHT_NIGHTLY_CRON", "0 3 * *"),
        ("OVERNIGHT_TIMEZONE", "Mars/Olympus"),
        ("OVERNIGHT_PORT", "99999"),
        ("OVERNIGHT_PERCENT_TEST", "101"),
        ("OVERNIGHT_LOG_LEVEL", "LOUD"),
        ("OVERNIGHT_LEAVE_OUT", "nothing"),
        ("OVERNIGHT_MOST_PER_TOPIC", "-1"),
        ("OVERNIGHT_TOPIC_WINDOW", "1"),
        ("OVERNIGHT_EXPLORE_PLACES", "1"),
        ("OVERNIGHT_EXPLORE_MAX_VIEWS", "0"),
        ("OVERNIGHT_POPULAR_BY", "recs.posts.topic"),
        ("OVERNIGHT_POPULAR_BY", "cursor"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_in_one_line(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable) as caught:
        Settings.from_environment({variable: value})
    assert "\n" not in str(caught.value)
    assert not re.search("ss#w|p@s|/ss@", str(caught.value))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("60 3 * * *", "minute"),
        ("0 24 * * *", "hour"),
        ("0 3 0 * *", "day of the month"),
        ("0 3 last * *", "day of the month"),
        ("0 3 * 13 *", "month"),
        ("0 3 * * 8", "weekday"),
        ("0 3 * * someday", "weekday"),
        ("0 5-3 * * *", "hour"),
        ("*/0 3 * * *", "minute"),
        ("0 3,, * * *", "hour"),
        ("-1 3 * * *", "minute"),
        ("0 3 30 2 *", "that fires"),
        ("0 3 31 4,6,9,11 *", "that fires"),
    ],
)
def test_a_bad_cron_expression_is_refused(expression: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=f"^OVERNIGHT_NIGHTLY_CRON='.*': must be .*{complaint}"):
        Settings.from_environment({"OVERNIGHT_NIGHTLY_CRON": expression})


def test_the_bounds_of_the_overlap_must_be_in_order() -> None:
    with pytest.raises(SettingsError, match="OVERNIGHT_GATE_OVERLAP_LOW must not be above"):
        Settings.from_environment({"OVERNIGHT_GATE_OVERLAP_LOW": "0.9", "OVERNIGHT_GATE_OVERLAP_HIGH": "0.1"})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((10, 10, 0, 100), "^OVERNIGHT_MOST_PER_TOPIC=10 must be below OVERNIGHT_TOPIC_WINDOW=10"),
        ((2, 21, 0, 20), "^OVERNIGHT_TOPIC_WINDOW=21 must not be above OVERNIGHT_TOP_N=20"),
        ((0, 10, 21, 20), "^OVERNIGHT_EXPLORE_PLACES=21 must not be above OVERNIGHT_TOP_N=20"),
    ],
)
def test_rules_of_the_feed_without_effect_are_refused(values: tuple[int, ...], reason: str) -> None:
    names = [f"OVERNIGHT_{name}" for name in ("MOST_PER_TOPIC", "TOPIC_WINDOW", "EXPLORE_PLACES", "TOP_N")]
    with pytest.raises(SettingsError, match=reason):
        Settings.from_environment(dict(zip(names, map(str, values), strict=True)))


@pytest.mark.parametrize("values", [(0, 10, 0, 5), (9, 10, 10, 10)])
def test_rules_of_the_feed_that_are_off_or_just_have_an_effect_are_allowed(values: tuple[int, ...]) -> None:
    names = ("most_per_topic", "topic_window", "explore_places", "top_n")
    Settings.of(**dict(zip(names, values, strict=True)))


def test_a_variable_that_is_no_setting_is_found() -> None:
    environment = {"OVERNIGHT_TOPN": "5", "OVERNIGHT_TOP_N": "5", "PATH": "/bin"}
    assert unknown_variables(environment) == {"OVERNIGHT_TOPN": "OVERNIGHT_TOP_N"}
    assert unknown_variables({"OVERNIGHT_ZZZZ": ""}) == {"OVERNIGHT_ZZZZ": None}


def test_no_secret_shows_in_a_repr_an_error_or_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    environment = {"DATABASE_URL": "postgresql://u:s3cr%40et@h/d", "REDIS_URL": "redis://:0ther@h:6379/0"}
    settings = Settings.from_environment(environment)
    assert "s3cr" not in repr(settings)
    assert "0ther" not in repr(settings)
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"DATABASE_URL": "mysql://u:s3cret@h/d"})
    assert "s3cret" not in str(caught.value)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        configure_logging(settings)
        logging.getLogger("any").error("at s3cr%40et, s3cr@et and 0ther")
    finally:
        root.handlers[:], root.level = before[0], before[1]
    output = capfd.readouterr().err
    assert "at ***, *** and ***" in output


MESSAGES = (
    'FATAL: password authentication failed for user "data" at 127.0.0.1:1; the database is a run',
    "postgresql://data:{secret}@127.0.0.1:1/a?password={secret}&a=1",
    'host=data password={secret} dbname=a, password=\'{secret}\' and {{"x": "\\npassword={secret}"}}',
)


@pytest.mark.parametrize("secret", ["a", "1", "run", "*", "a@b"])
def test_a_secret_as_short_as_a_word_leaves_messages_readable(secret: str) -> None:
    quoted = secret.replace("@", "%40")
    settings = Settings.of(database_url=f"postgresql://u:{quoted}@h/d")
    plain, *urls = (message.format(secret=quoted) for message in MESSAGES)
    assert redact(plain, settings.secrets()) == plain
    for url, message in zip(urls, MESSAGES[1:], strict=True):
        assert redact(url, settings.secrets()) == message.format(secret="***")


@pytest.mark.parametrize("secret", ["data", "pass", "over!", "it's-it", "p%20a%22s"])
def test_a_short_secret_is_replaced_where_it_stands_alone(secret: str) -> None:
    settings = Settings.of(database_url=f"postgresql://u:{secret}@h/d", redis_url=f"redis://:{secret}@h/0")
    shown = unquote(secret)
    text = f"{shown} '{shown}' x={shown}; AUTH {shown}\n{shown}."
    expected = "*** '***' x=***; AUTH ***\n***."
    assert redact(text, settings.secrets()) == expected
    assert redact(json.dumps(text), settings.secrets()) == json.dumps(expected)
    assert redact("the database passed by", settings.secrets()) == "the database passed by"


def test_redaction_needs_no_secrets() -> None:
    assert redact("plain", []) == "plain"
