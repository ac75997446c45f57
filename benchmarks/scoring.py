"""Cost of scoring all users with all posts by several scorers, as a table and a plot.

The scorers: `overnight`, that of this project; `booster`, LightGBM's
`Booster.predict` on rows assembled batch by batch; and `lleaves`, which compiles
the forest with LLVM, if the variable LLEAVES_PYTHON is the path of a Python that
has it. The variable JSON is the path of a file for the rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.case import Case
from benchmarks.network import make_likes, make_tables, train
from benchmarks.report import Columns, machine, print_head, print_row, save_rows
from benchmarks.scorers import ROOT, SAMPLES, error, measure

TREES = (50, 200, 800)
POSTS = (1_000, 7_000, 50_000)
USERS = 16_384
N = 100
BUDGET_MIB = 256
STYLES = {"booster": ("tab:red", 6), "lleaves": ("tab:orange", -13), "overnight": ("tab:blue", 6)}
"""Each scorer's colour, and the distance in points of the labels above its line."""
COLUMNS: Columns = {
    "way": ("scorer", ">10"),
    "trees": ("trees", "6"),
    "posts": ("posts", "7"),
    "ns_per_pair": ("ns/pair", "9.1f"),
    "ratio_to_booster": ("ratio", "7.1f"),
    "peak_mib": ("peak MiB", "9"),
    "setup_seconds": ("set-up s", "9.1f"),
    "max_abs_error": ("max error", "10.1e"),
}


def main() -> None:
    """Measure, print one table, write JSON and the plot."""
    argparse.ArgumentParser(description="Measure scoring. It takes no options.").parse_args()
    pythons = {"booster": sys.executable, "overnight": sys.executable}
    if lleaves := os.environ.get("LLEAVES_PYTHON"):
        pythons["lleaves"] = lleaves
    print(f"{machine()}; {USERS} users, N = {N}, 60 columns, trees of 31 leaves")
    print_head(COLUMNS)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for trees in TREES:
            for posts in POSTS:
                rows += compare(pythons, trees, posts, Path(folder))
    save_rows(rows)
    draw(rows, ROOT / "docs")


def compare(pythons: dict[str, str], trees: int, posts: int, folder: Path) -> list[dict[str, Any]]:
    """Measure every scorer for one forest and one number of posts; `booster` comes first, as the baseline."""
    tables = make_tables(USERS, posts)
    forest = train(tables, trees).model_to_string()
    Case(forest, tables, None, make_likes(tables), N, BUDGET_MIB).save(folder / "case")
    rows: list[dict[str, Any]] = []
    for scorer, python in pythons.items():
        threads = os.cpu_count() or 1
        found = measure(scorer, folder / "case", threads, folder / SAMPLES[scorer], python=python)
        row: dict[str, Any] = {
            "way": scorer,
            "trees": trees,
            "posts": posts,
            "ns_per_pair": found.ns_per_pair,
        }
        row["ratio_to_booster"] = (rows[0] if rows else row)["ns_per_pair"] / found.ns_per_pair
        row |= {"peak_mib": found.peak_mib, "setup_seconds": found.setup_seconds}
        row["max_abs_error"] = error(folder / SAMPLES[scorer], folder / SAMPLES["booster"])
        rows.append(row)
        print_row(COLUMNS, row)
    return rows


def draw(rows: list[dict[str, Any]], folder: Path) -> None:
    """Draw cost per pair over the number of trees, one panel for each number of posts."""
    figure, panels = plt.subplots(1, len(POSTS), figsize=(11, 3.6), sharey=True)
    for posts, panel in zip(POSTS, panels, strict=True):
        for scorer, (colour, above) in STYLES.items():
            line = [row for row in rows if row["way"] == scorer and row["posts"] == posts]
            if line:
                trees, cost = [row["trees"] for row in line], [row["ns_per_pair"] for row in line]
                panel.loglog(trees, cost, "o-", color=colour, label=scorer)
                for x, y in zip(trees, cost, strict=True):
                    text = f"{y:,.0f}" if y > 20 else f"{y:.1f}"
                    panel.annotate(text, (x, y), textcoords="offset points", xytext=(0, above), ha="center")
        panel.set(title=f"{posts:,} posts", xlabel="trees of 31 leaves", xticks=TREES)
        panel.set_xticks(TREES, [str(trees) for trees in TREES])
        panel.minorticks_off()
        panel.margins(0.15, 0.2)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"ns per (user, post) pair\n{machine()}")
    panels[0].legend()
    figure.tight_layout()
    folder.mkdir(exist_ok=True)
    figure.savefig(folder / "scoring.png", dpi=150)


if __name__ == "__main__":
    main()
