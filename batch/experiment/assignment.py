"""The variant of a user in SQL: the rule of `contract.experiment.Experiment.variant_of` for Postgres."""

from __future__ import annotations

from contract.experiment import CONTROL, TEST, Experiment

WEIGHTS = (36, 16, 96, 1)
"""What 2^96, 2^64, 2^32 and 1 leave modulo 100: the weights of the four 32-bit parts of an md5."""

DIGITS = 8
"""Hexadecimal digits of a part."""


def bucket_sql(user_id: str, salt: str) -> str:
    """Return the SQL of a user's bucket, 0 to 99: md5 of the id and the salt as a number, modulo 100.

    Postgres has no integer of 128 bits, so each part is taken times what its
    power of two leaves modulo 100; the sum is below 2^40.

    Parameters
    ----------
    user_id, salt
        SQL of a whole number and of a text, such as `user_id` and `:salt`.
    """
    digest = f"md5(convert_to({user_id} || {salt}, 'UTF8'))"
    parts = [
        f"('x' || substr({digest}, {1 + place * DIGITS}, {DIGITS}))::bit(32)::bigint * {weight}"
        for place, weight in enumerate(WEIGHTS)
    ]
    return "mod(" + "\n  + ".join(parts) + ", 100)"


def variant_sql(user_id: str, experiment: Experiment) -> str:
    """Return the SQL of a user's variant, pinned users among them; `user_id` as above."""
    pins = "".join(
        f"WHEN {user_id} = {pinned} THEN '{variant}'\n" for pinned, variant in sorted(experiment.pins.items())
    )
    bucket = bucket_sql(user_id, literal(experiment.salt))
    return f"CASE {pins}WHEN {bucket} < {experiment.percent_test}\nTHEN '{TEST}' ELSE '{CONTROL}' END"


def literal(text: str) -> str:
    """Return a text as it stands in SQL."""
    return "'" + text.replace("'", "''") + "'"
