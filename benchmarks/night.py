"""Measure scoring on the network in `DATABASE_URL` with the models that the night would train.

Each variant is trained as in the night. Then all users are scored against all
posts twice, first with an empty cache of compiled code and then with a full one,
and rows for a sample of the pairs are assembled for `Booster.predict`. `JSON`
names a file for the rows.
"""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from batch.evaluation.learner import choose_recipe
from batch.postgres import open_engine, readable_errors
from batch.training.dataset import Dataset, open_dataset
from batch.training.fit import fit
from batch.variants import MODELS, Variant
from benchmarks.case import Case
from benchmarks.report import Columns, machine, print_head, print_row, save_rows
from benchmarks.scorers import SAMPLES, error, measure
from contract.settings import Settings

COLUMNS: Columns = {
    "variant": ("variant", ">8"),
    "trees": ("trees", "6"),
    "pairs": ("pairs", "14,"),
    "ns_per_pair": ("ns/pair", "8.1f"),
    "booster_ns_per_pair": ("booster", "8.0f"),
    "ratio_to_booster": ("ratio", "6.0f"),
    "first_seconds": ("first s", "8.1f"),
    "first_seconds_compiled": ("compiled", "9.1f"),
    "setup_seconds": ("set-up s", "9.1f"),
    "peak_mib": ("peak MiB", "9"),
    "max_abs_error": ("max error", "10.1e"),
}


def main() -> None:
    """Load, train, measure, print one table and write JSON."""
    settings = Settings.from_environment()
    engine = open_engine(settings, "benchmarks.night")
    with (
        readable_errors(settings),
        threadpool_limits(1, user_api="blas"),
        open_dataset(engine, settings, None, datetime.now(UTC)) as dataset,
        tempfile.TemporaryDirectory() as folder,
    ):
        users, posts = len(dataset.network.users), len(dataset.network.posts)
        print(f"{machine()}; {users} users x {posts} posts, N = {settings.night.top_n}")
        print_head(COLUMNS)
        rows = [compare(variant, dataset, settings, Path(folder)) for variant in MODELS.values()]
    save_rows(rows)


def compare(variant: Variant, dataset: Dataset, settings: Settings, folder: Path) -> dict[str, Any]:
    """Measure one variant; `ns_per_pair` includes the set-up."""
    with threadpool_limits(1, user_api="blas"):
        recipe = choose_recipe(variant, dataset, settings).recipe
        model = fit(variant, dataset, windows=dataset.windows, recipe=recipe, settings=settings)
        factors = model.factors(dataset.network, dataset.now)
        tables = model.tables(dataset.network, dataset.now).of_users(slice(None))
    path, forest = folder / "case", model.booster.model_to_string()
    dot = None if factors is None else (factors.users, factors.posts)
    Case(forest, tables, dot, dataset.now.likes, settings.night.top_n, settings.night.memory_budget_mib).save(
        path
    )
    threads = settings.night.threads or os.cpu_count() or 1
    booster = measure("booster", path, threads, folder / SAMPLES["booster"])
    compiled = folder / variant.name
    cold = measure("overnight", path, threads, folder / SAMPLES["overnight"], compiled=compiled)
    warm = measure("overnight", path, threads, folder / SAMPLES["overnight"], compiled=compiled)
    ns_per_pair = (warm.seconds + warm.setup_seconds) / warm.pairs * 1e9
    row = {
        "variant": variant.name,
        "trees": model.booster.num_trees(),
        "pairs": warm.pairs,
        "ns_per_pair": ns_per_pair,
        "booster_ns_per_pair": booster.ns_per_pair,
        "ratio_to_booster": booster.ns_per_pair / ns_per_pair,
        "first_seconds": cold.first_seconds,
        "first_seconds_compiled": warm.first_seconds,
        "setup_seconds": warm.setup_seconds,
        "peak_mib": max(cold.peak_mib, warm.peak_mib),
        "max_abs_error": error(folder / SAMPLES["overnight"], folder / SAMPLES["booster"]),
    }
    print_row(COLUMNS, row)
    return row


if __name__ == "__main__":
    main()
