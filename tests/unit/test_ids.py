"""Ids of any kind, and their forms in keys, requests, JSON and files."""

from __future__ import annotations

import re
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch.ids import among, as_ids, drop_repeats, encode_ids, pack_ids, rows_of_ids, unpack_ids
from contract.ids import MAX_LENGTH, IdKind, IdKinds, check_id, decode_id, encode_id, parse_id, quote_id

NUMBER, UUID, TEXT = IdKind
A_UUID = "0d5ee3b5-9d7c-4d36-8a2c-6f0a3a3c8a11"
texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=MAX_LENGTH)
ids = {NUMBER: st.integers(0, 2**63 - 1), UUID: st.uuids().map(str), TEXT: texts}


@given(st.sampled_from(IdKind).flatmap(lambda kind: st.tuples(st.just(kind), ids[kind])))
def test_an_id_is_read_back_from_its_key(case):
    kind, value = case
    encoded = encode_id(value)
    assert re.fullmatch(r"(?:[A-Za-z0-9._~@-]|%[0-9A-F]{2})+", encoded)
    assert unquote(encoded) == str(value)
    assert decode_id(encoded, kind) == parse_id(str(value), kind) == check_id(value, kind) == value


@pytest.mark.parametrize("given_id", [A_UUID.upper(), f"{{{A_UUID}}}", f"{{{A_UUID.upper()}}}"])
def test_a_uuid_may_be_in_any_case_and_in_braces(given_id):
    assert parse_id(given_id, UUID) == A_UUID


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        *((text, NUMBER) for text in ("", "abc", "-1", "1.5", " 1", "٣", str(2**63), "1_0", A_UUID)),
        *((text, UUID) for text in ("", "42", A_UUID[:-1], A_UUID + "0", "{" + A_UUID, A_UUID + "}")),
        *((text, UUID) for text in (A_UUID.replace("-", ""), f" {A_UUID}", A_UUID.replace("d", "g"))),
        *((text, TEXT) for text in ("", "x" * 129, "a\nb", "a\x00", "\x7f", "a\x85", "\ud800")),
    ],
)
def test_what_is_not_of_the_kind_is_refused(wrong, kind):
    with pytest.raises(ValueError, match=r"^must be "):
        parse_id(wrong, kind)


@pytest.mark.parametrize(
    ("value", "kind"), [("1", NUMBER), (True, NUMBER), (1.0, NUMBER), (-1, NUMBER), (1, TEXT), (None, TEXT)]
)
def test_json_of_another_type_is_refused(value, kind):
    with pytest.raises(ValueError, match="is not an id of kind"):
        check_id(value, kind)


def test_kinds_are_recorded():
    kinds = IdKinds(users=UUID, posts=TEXT)
    assert IdKinds.from_record(kinds.to_record()) == kinds
    assert IdKinds.from_record(None) == IdKinds(NUMBER, NUMBER)
    for broken in ({"users": "ulid"}, "text", []):
        with pytest.raises(ValueError, match=r"ulid|kinds of ids"):
            IdKinds.from_record(broken)


@given(st.sampled_from(IdKind).flatmap(lambda kind: st.tuples(st.just(kind), st.sets(ids[kind], min_size=1))))
def test_rows_are_found_again_after_packing(case):
    kind, values = case
    ordered = sorted(values)
    known = unpack_ids(pack_ids(as_ids(ordered[::2], kind)))
    assert known.dtype == (np.int64 if kind is NUMBER else object)
    rows = rows_of_ids(known, as_ids(ordered, kind))
    assert rows.tolist() == [-1 if index % 2 else index // 2 for index in range(len(ordered))]
    assert encode_ids(known) == [encode_id(value) for value in ordered[::2]]
    assert among(as_ids(ordered, kind), known).tolist() == [index % 2 == 0 for index in range(len(ordered))]
    repeated = as_ids(sorted(ordered * 2), kind)
    assert drop_repeats(repeated).tolist() == ordered
    assert drop_repeats(repeated[:0]).size == 0


def test_ids_of_another_kind_are_not_among_numbers():
    assert not among(as_ids(["1"], TEXT), as_ids([1], NUMBER)).any()


def test_a_message_has_text_in_quotes_where_it_could_be_taken_for_words() -> None:
    assert [quote_id(each) for each in (42, "anna.b-1_~@x")] == ["42", "anna.b-1_~@x"]
    assert quote_id("is blocked, not") == '"is blocked, not"'
    assert quote_id('a "b"\\') == '"a \\"b\\"\\\\"'
    assert quote_id("жук") == '"жук"'
