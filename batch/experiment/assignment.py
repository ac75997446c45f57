"""The variant of a user in SQL: the rule of `contract.experiment.Experiment.variant_of` for Postgres."""

from __future__ import annotations

from contract.experiment import CONTROL, TEST, Experiment

WEIGHTS = (36, 16, 96, 1)
"""2^96, 2^64, 2^32 and 1, each modulo 100: the weights of the four 32-bit parts of an md5 digest."""

PART_DIGITS = 8
"""Hexadecimal digits of a part."""


def bucket_sql(user_id: str, salt: str) -> str:
    """Return the SQL of a user's bucket, 0 to 99: md5 of the id and the salt as a number, modulo 100.

    Postgres has no 128-bit integer. So each 32-bit part is multiplied by its
    power of two modulo 100 and the products are added; the sum is below 2^40.

    Parameters
    ----------
    user_id, salt
        SQL expressions of an integer and of a text, such as `user_id` and `:salt`.
    """
    digest = f"md5(convert_to({user_id} || {salt}, 'UTF8'))"
    parts = [
        f"('x' || substr({digest}, {1 + index * PART_DIGITS}, {PART_DIGITS}))::bit(32)::bigint * {weight}"
        for index, weight in enumerate(WEIGHTS)
    ]
    return "mod(" + "\n  + ".join(parts) + ", 100)"


def variant_sql(user_id: str, experiment: Experiment) -> str:
    """Return the SQL of a user's variant, including pinned users; `user_id` is an SQL expression."""
    pins = "".join(
        f"WHEN {user_id} = {pinned} THEN '{variant}'\n" for pinned, variant in sorted(experiment.pins.items())
    )
    bucket = bucket_sql(user_id, quote_literal(experiment.salt))
    return f"CASE {pins}WHEN {bucket} < {experiment.percent_test}\nTHEN '{TEST}' ELSE '{CONTROL}' END"


def quote_literal(text: str) -> str:
    """Return a text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"
