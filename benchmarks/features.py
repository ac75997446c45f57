"""Measures what each part of a model pays, on the network in `DATABASE_URL`.

Each line is a variant with one thing left out, or put in, judged by folds of
users on the views since the history's end, and beside the variant it was made
from. `JSON` names a file for the rows.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from threadpoolctl import threadpool_limits

from batch.judging.evaluation import Evaluation
from batch.judging.protocols import by_folds
from batch.learning.gather import gathered_now
from batch.loading.source import explained, open_engine
from batch.variants import VARIANTS, Variant
from benchmarks.report import Columns, print_head, print_row, save_rows
from contract.columns import TOPIC
from contract.experiment import CONTROL, TEST
from contract.settings import Settings

FOLDS = 5
COLUMNS: Columns = {
    "variant": ("variant", "<38"),
    "hitrate_at_5": ("hitrate@5", "9.4f"),
    "low": ("low", "7.4f"),
    "high": ("high", "7.4f"),
    "ndcg_at_5": ("ndcg@5", "7.4f"),
    "roc_auc": ("roc auc", "8.4f"),
    "auc_difference": ("auc diff", "9.4f"),
    "auc_low": ("low", "8.4f"),
    "auc_high": ("high", "8.4f"),
}


COUNTERS = ("post_views", "post_likes")
PROFILE = tuple(f"user_{name}" for name in ("gender", "age", "country", "city", "exp_group", "os", "source"))


def cases() -> list[tuple[str, Variant, str]]:
    """Name each variant to judge, and the one that it is compared with."""
    control, test = VARIANTS[CONTROL], VARIANTS[TEST]
    return [
        (CONTROL, control, CONTROL),
        (
            "control without counters of posts",
            replace(control, without=("post_views", "post_likes")),
            CONTROL,
        ),
        ("control without like rate of posts", replace(control, without=("post_like_rate",)), CONTROL),
        ("control without text", replace(control, with_text=False), CONTROL),
        ("control without embedding columns", replace(control, without=("post_pc", "post_d2v")), CONTROL),
        ("control without profile of users", replace(control, without=PROFILE), CONTROL),
        ("control without affinity by topic", replace(control, groupings=()), CONTROL),
        (TEST, test, CONTROL),
        ("test without factors", replace(test, with_factors=False), TEST),
        ("test without people like the user", replace(test, with_people=False), TEST),
        ("test without affinity by cluster", replace(test, groupings=(TOPIC,)), TEST),
        ("test without sentence embeddings", replace(test, with_embeddings=False), TEST),
    ]


def main() -> None:
    """Load once, judge every variant, print one table and write JSON."""
    settings = Settings.from_environment()
    engine = open_engine(settings, "benchmarks.features")
    found: dict[str, Evaluation] = {}
    rows: list[dict[str, Any]] = []
    with explained(settings), threadpool_limits(1, user_api="blas"):
        print_head(COLUMNS)
        with gathered_now(engine, settings, None, datetime.now(UTC)) as gathered:
            for name, variant, other in cases():
                found[name] = by_folds(variant, gathered, FOLDS, settings)
                rows.append({"variant": name, "beside": other} | figures(found[name], found[other]))
                print_row(COLUMNS, rows[-1])
    save_rows(rows)


def figures(mine: Evaluation, other: Evaluation) -> dict[str, Any]:
    """Return a variant's figures, and its AUC less another's with the interval of the difference."""
    flat = mine.flat(("other", other))
    names = {
        "hitrate_at_5": "hitrate_at_5",
        "low": "hitrate_at_5_low",
        "high": "hitrate_at_5_high",
        "ndcg_at_5": "ndcg_at_5",
        "roc_auc": "roc_auc",
        "auc_difference": "minus_other_roc_auc",
        "auc_low": "minus_other_roc_auc_low",
        "auc_high": "minus_other_roc_auc_high",
        "users": "users",
        "popularity_hitrate_at_5": "popularity_hitrate_at_5",
        "random_hitrate_at_5": "random_hitrate_at_5",
    }
    return {name: flat[key] for name, key in names.items()}


if __name__ == "__main__":
    main()
