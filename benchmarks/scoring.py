"""Measures the ways to score all users with all posts, side by side, and draws how their cost grows.

Ours; LightGBM's own `Booster.predict` on rows put together a chunk at a time;
and lleaves, which compiles the forest with LLVM, where `LLEAVES_PYTHON` names a
Python that has it. `JSON` names a file for the rows.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.network import make_tables, train

ROOT = Path(__file__).parents[1]
TREES = (50, 200, 800)
POSTS = (1_000, 7_000, 50_000)
USERS = 16_384
COLOURS = {"overnight": "tab:blue", "booster": "tab:red", "lleaves": "tab:orange"}
HEAD = (
    f"{'way':10} {'trees':>6} {'posts':>7} {'ns/pair':>9} {'ratio':>7} {'peak MiB':>9}"
    f" {'set-up s':>9} {'max error':>10}"
)


def main() -> None:
    """Measure, print one table, write JSON and the plot."""
    threads = os.cpu_count() or 1
    pythons = {"overnight": sys.executable, "booster": sys.executable}
    if lleaves := os.environ.get("LLEAVES_PYTHON"):
        pythons["lleaves"] = lleaves
    print(f"{machine()}; {USERS} users, N = 100, 60 columns, trees of 31 leaves\n{HEAD}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for trees in TREES:
            for posts in POSTS:
                rows += measure(pythons, trees, posts, threads, Path(folder))
    if path := os.environ.get("JSON"):
        Path(path).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(rows, ROOT / "docs")


def machine() -> str:
    """Name the machine by its cores and widest vector instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    widest = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), None)
    return f"{os.cpu_count()} cores, {widest or platform.machine()}"


def measure(
    pythons: dict[str, str], trees: int, posts: int, threads: int, folder: Path
) -> list[dict[str, Any]]:
    """Measure every way for one forest and one number of posts."""
    model = folder / "model.txt"
    train(make_tables(USERS, posts), trees).save_model(model)
    rows: list[dict[str, Any]] = []
    # The yardstick first, as the others are compared with it.
    for way in sorted(pythons, key=["booster", "overnight", "lleaves"].index):
        sample = folder / f"{way}.npy"
        arguments = [way, str(model), str(USERS), str(posts), str(threads), str(sample)]
        ran = subprocess.run(
            [pythons[way], "-m", "benchmarks.ways", *arguments],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = json.loads(ran.stdout.splitlines()[-1])
        booster = rows[0] if rows else found
        row = {"way": way, "trees": trees, "posts": posts} | found
        row["ratio_to_booster"] = booster["ns_per_pair"] / row["ns_per_pair"]
        row["max_abs_error"] = error(sample, np.load(folder / "booster.npy"))
        rows.append(row)
        print(
            f"{way:10} {trees:6} {posts:7} {row['ns_per_pair']:9.1f} {row['ratio_to_booster']:7.1f}"
            f" {row['peak_mib']:9} {row['setup_seconds']:9.1f} {row['max_abs_error']:10.1e}",
            flush=True,
        )
    return rows


def error(sample: Path, expected: np.ndarray) -> float:
    """Compare a sample's scores with LightGBM's: all of them, or those of the lists."""
    if sample.exists():
        return float(np.abs(np.load(sample) - expected).max())
    lists = np.load(f"{sample}.npz")
    kept = np.where(lists["posts"] >= 0, lists["posts"], 0)
    return float(np.nanmax(np.abs(lists["scores"] - np.take_along_axis(expected, kept, axis=1))))


def draw(rows: list[dict[str, Any]], folder: Path) -> None:
    """Draw cost per pair over the number of trees, a panel for each number of posts."""
    figure, panels = plt.subplots(1, len(POSTS), figsize=(11, 3.6), sharey=True)
    for posts, panel in zip(POSTS, panels, strict=True):
        for way, colour in COLOURS.items():
            line = [row for row in rows if row["way"] == way and row["posts"] == posts]
            if line:
                trees, cost = [row["trees"] for row in line], [row["ns_per_pair"] for row in line]
                panel.loglog(trees, cost, "o-", color=colour, label=way)
                for x, y in zip(trees, cost, strict=True):
                    told = f"{y:,.0f}" if y > 20 else f"{y:.1f}"
                    panel.annotate(told, (x, y), textcoords="offset points", xytext=(0, 6), ha="center")
        panel.set(title=f"{posts:,} posts", xlabel="trees of 31 leaves", xticks=TREES)
        panel.set_xticks(TREES, [str(trees) for trees in TREES])
        panel.minorticks_off()
        panel.margins(0.15, 0.2)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"ns per (user, post) pair\n{machine()}")
    panels[0].legend()
    figure.tight_layout()
    folder.mkdir(exist_ok=True)
    for kind in ("png", "svg"):
        figure.savefig(folder / f"scoring.{kind}", dpi=150)


if __name__ == "__main__":
    main()
