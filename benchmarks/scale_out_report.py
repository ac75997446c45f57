"""Write the figures of `make bench-scale-out` into docs/scaling.md as tables, and draw docs/scaling.png.

    python -m benchmarks.scale_out_report FILE [--table]

`--table` prints the tables and changes nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from batch.publishing.memory import key_bytes
from batch.scoring.score import users_per_task
from benchmarks.report import replace_between
from benchmarks.scale_out import RUN_ID
from benchmarks.scale_out_simulation import Cluster, Costs, Prediction, simulate
from benchmarks.scorers import ROOT
from contract.keys import Keys

DOCUMENT, PLOT = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling.png"

USERS = (10_000_000, 100_000_000)
CORES = (10, 100, 1_000)
CURVE = (1, 2, 4, 10, 20, 40, 100, 200, 400, 1_000)
LENGTHS = (100, 50, 20)
LINK_BYTES_PER_SECOND = 1.25e9
NODE_BYTES = 64e9
"""Lists in one node of Redis."""
POST_BYTES = 40
"""Of a post in the shared data, without the forest: text of its id, rank, and whether lists may have it."""
NIGHT_SECONDS = 6 * 3600
LOAD_INTERACTIONS, LOAD_SECONDS = 76_892_800, 62 + 19
FACTOR_PAIRS, FACTOR_SECONDS = 60_600_000, 102
"""One run of a night, see docs/loading.md."""
CANDIDATES, BOOSTER_NS = 1_000, 7_035
"""Nanoseconds a pair of `Booster.predict` with 200 trees, see docs/scoring.md."""
INTERACTIONS_PER_USER = (50, 471)
"""A simulated network's, and a real one's."""
SINGLE = ("driver", "link", "scheduler", "redis")
"""What more workers do not make faster."""
POINTS = (("seconds", "o", "tab:blue", "measured"), ("predicted_seconds", "x", "tab:red", "computed"))
GB = 1e9

Figures = dict[str, Any]
Lines = list[str]


def main() -> None:
    """Read the file, and write the tables and the drawing, or print the tables."""
    parser = argparse.ArgumentParser(description="Make the tables of docs/scaling.md.")
    parser.add_argument("file", type=Path, help="what `make bench-scale-out JSON=FILE` wrote")
    parser.add_argument("--table", action="store_true", help="print the tables and change nothing")
    options = parser.parse_args()
    try:
        figures: Figures = json.loads(options.file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {options.file} cannot be read: {error}; nothing was written")
    tables = make_tables(figures)
    if options.table:
        for name, lines in tables.items():
            print("\n".join([f"{name}:", "", *lines, ""]))
        return
    document = replace_tables(DOCUMENT.read_text(encoding="utf-8"), tables)
    DOCUMENT.write_text(document, encoding="utf-8", newline="\n")
    draw(figures, PLOT)
    print(f"wrote the tables into {DOCUMENT} and the drawing {PLOT}")


def replace_tables(document: str, tables: dict[str, Lines]) -> str:
    """Return the document with each table between its two marks.

    Raises
    ------
    ValueError
        The document lacks a mark.
    """
    for name, lines in tables.items():
        start_end = (f"<!-- bench-scale-out: {name} -->", f"<!-- bench-scale-out: end of {name} -->")
        document = replace_between(document, *start_end, lines)
    return document


def make_tables(figures: Figures) -> dict[str, Lines]:
    """Return the lines of each table by its name."""
    return {
        "ways": _ways(figures),
        "costs": _costs(figures),
        "scorer": _scorer(figures),
        "time": _time(figures),
        "limits": _limits(figures),
        "bytes": _bytes(figures),
        "driver": _driver(figures),
        "loading": _loading(),
        "night": _night(figures),
        "candidates": _candidates(figures),
    }


def _table(head: list[str], rows: list[list[str]]) -> Lines:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _ways(figures: Figures) -> Lines:
    head = ["way", "seconds (fastest to slowest)", "predicted", "users/s", "core seconds", "predicted"]
    head += [f"driver MiB, {figures[size]:,} users" for size in ("less_users", "more_users")]
    head += ["worker MiB"]
    head += ["KiB of Redis for clients", "checksum"]
    rows = [
        [
            way["way"],
            f"{way['seconds']:.2f} ({way['fastest']:.2f} to {way['slowest']:.2f})",
            f"{way['predicted_seconds']:.2f}",
            f"{way['users_per_second']:,.0f}",
            f"{way['core_seconds']:.2f}",
            f"{way['predicted_core_seconds']:.2f}",
            f"{way['driver_mib']:.1f}",
            f"{way['driver_mib_more']:.1f}",
            f"{way['worker_mib']:.0f}",
            f"{way['redis_buffer_mib'] * 1024:,.0f}",
            f"`{way['checksum'][:12]}`",
        ]
        for way in figures["ways"]
    ]
    network = f"{figures['users']:,} users x {figures['posts']:,} posts, N = {figures['n']}"
    return [f"{figures['machine']}; {network}:", "", *_table(head, rows)]


def _costs(figures: Figures) -> Lines:
    costs = Costs(**figures["costs"])
    per_pair = costs.user_seconds / figures["posts"]
    rows = [
        ["map without work: connect, check workers, share", f"{costs.map_seconds:.2f} s"],
        ["empty tasks a second, two workers", f"{figures['tasks']['tasks_per_second']:,.0f}"],
        ["task: driver, scheduler, worker", _us(
            costs.driver_task_seconds, costs.scheduler_task_seconds, costs.worker_task_seconds
        )],
        ["MB of a task: driver, scheduler, worker", _us(
            *(1e6 * s for s in (
                costs.driver_byte_seconds, costs.scheduler_byte_seconds, costs.worker_byte_seconds
            ))
        )],
        ["user of a task, cut by the driver", _us(costs.cut_seconds)],
        ["scoring: chunk, and pair of a user and a post",
         f"{costs.chunk_seconds * 1000:.0f} ms, {per_pair * 1e9:.1f} ns"],
        ["list, written: worker, Redis", _us(costs.write_seconds, costs.store_seconds)],
        ["list, read back: worker, Redis", _us(costs.verify_seconds, costs.read_seconds)],
        ["list, written to a Redis Cluster: worker, Redis", _us(
            *(figures["redis_cluster_costs"][name] for name in ("write_seconds", "store_seconds"))
        )],
        ["list, read back from a Redis Cluster: worker, Redis", _us(
            *(figures["redis_cluster_costs"][name] for name in ("verify_seconds", "read_seconds"))
        )],
        ["bytes a user: to the worker, to be read back, list",
         f"{costs.user_bytes:,.0f}, {costs.id_bytes:.0f}, {figures['value_bytes']:,.0f}"],
        ["shared data, once to each worker", f"{costs.shared_bytes / 1e6:,.1f} MB"],
    ]  # fmt: skip
    return _table(["what", "cost"], rows)


def _us(*seconds: float) -> str:
    return ", ".join(f"{each * 1e6:,.1f}" for each in seconds) + " us"


def _scorer(figures: Figures) -> Lines:
    rows = [
        [
            f"{row['posts']:,}",
            f"{row['user_seconds'] / row['posts'] * 1e9:.1f}",
            f"{row['chunk_seconds']:.2f}",
            f"{ns_per_pair(row, 16_384):.1f}",
            f"{ns_per_pair(row, 2_048):.1f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['forest_bytes'] / 1e6:,.0f}",
        ]
        for row in figures["scorer"]
    ]
    head = ["posts", "ns a pair", "s a chunk", "ns a pair, 16,384 users a chunk"]
    return _table([*head, "ns a pair, 2,048 users a chunk", "compile s", "forest MB"], rows)


def ns_per_pair(row: Figures, users: int) -> float:
    """Return the cost of a pair in a chunk of so many users, with its share of the chunk's cost."""
    return float((row["user_seconds"] + row["chunk_seconds"] / users) / row["posts"] * 1e9)


def costs_for(figures: Figures, row: Figures, users: int) -> Costs:
    """Return the unit costs for other numbers of users and posts."""
    in_cluster = nodes_for(figures, users, row["posts"]) > 1
    return replace(
        Costs(**figures["costs"] | (figures["redis_cluster_costs"] if in_cluster else {})),
        chunk_seconds=row["chunk_seconds"],
        user_seconds=row["user_seconds"],
        shared_bytes=row["forest_bytes"] + POST_BYTES * row["posts"],
    )


def predict(figures: Figures, users: int, row: Figures, cores: int) -> Prediction:
    """Predict with workers of one core, a link of 10 Gbit/s, and as many nodes of Redis as lists need."""
    return _predict(costs_for(figures, row, users), users, cores, nodes_for(figures, users, row["posts"]))


@cache
def _predict(costs: Costs, users: int, cores: int, nodes: int) -> Prediction:
    cluster = Cluster(cores, nodes=nodes, link_bytes_per_second=LINK_BYTES_PER_SECOND)
    return simulate(costs, cluster, users, users_per_task(users, cores))


def core_hours(figures: Figures, users: int, row: Figures) -> float:
    """Return the core hours of workers in tasks of the largest size."""
    costs = costs_for(figures, row, users)
    chunks = users / users_per_task(users, 1)
    of_lists = users * (costs.user_seconds + costs.write_seconds + costs.verify_seconds)
    return (chunks * costs.chunk_seconds + of_lists) / 3600


def list_bytes(figures: Figures, posts: int, n: int) -> float:
    """Return the mean bytes of a list of n posts with whole numbers as ids."""
    pair = figures["value_bytes"] / figures["n"] + digits(posts) - digits(figures["posts"])
    return 2 + n * pair


def digits(count: int) -> float:
    """Return the mean number of digits of the whole numbers from 1 to `count`."""
    return sum(count + 1 - 10**power for power in range(len(str(count)))) / count


def redis_bytes(figures: Figures, users: int, posts: int, n: int) -> float:
    """Return the memory of a run's lists in Redis, by the forecast of batch/publishing/memory.py."""
    key_length = len(Keys().user(RUN_ID, 0)) - 1 + round(digits(users))
    value = np.array([round(list_bytes(figures, posts, n))])
    return users * float(key_bytes(key_length, value)[0])


def nodes_for(figures: Figures, users: int, posts: int) -> int:
    """Return how many nodes of Redis lists of the measured length need."""
    return math.ceil(redis_bytes(figures, users, posts, figures["n"]) / NODE_BYTES)


def _sizes(figures: Figures) -> list[tuple[int, Figures]]:
    return [(users, row) for users in USERS for row in figures["scorer"]]


def _time(figures: Figures) -> Lines:
    rows = []
    for users, row in _sizes(figures):
        predicted = [predict(figures, users, row, cores) for cores in CORES]
        cells = [f"{users // 10**6} million", f"{row['posts']:,}", f"{users * row['posts']:.0e}"]
        cells += [f"{core_hours(figures, users, row):,.1f}"]
        cells += [f"{each.seconds / 60:,.1f}" for each in predicted]
        last = predicted[-1]
        rows.append([*cells, f"{last.bottleneck} {100 * last.busy[last.bottleneck]:.0f} %"])
    head = ["users", "posts", "pairs", "core hours", *(f"minutes, {cores:,} cores" for cores in CORES)]
    return _table([*head, f"busiest with {CORES[-1]:,}"], rows)


def _limits(figures: Figures) -> Lines:
    rows = []
    for users, row in _sizes(figures):
        tried = {cores: predict(figures, users, row, cores) for cores in CURVE}
        efficient = [cores for cores, each in tried.items() if each.busy["workers"] >= 0.5]
        busy = tried[CURVE[-1]].busy
        cells = [
            f"{users // 10**6} million",
            f"{row['posts']:,}",
            str(nodes_for(figures, users, row["posts"])),
        ]
        cells += [f"{max(efficient):,}" if efficient else "none"]
        rows.append(
            [*cells, *(f"{100 * busy[name]:.0f} %" for name in ("driver", "link", "scheduler", "redis"))]
        )
    head = ["users", "posts", "nodes of Redis", "most cores that are half busy"]
    return _table(
        [*head, *(f"{name}, {CURVE[-1]:,} cores" for name in ("driver", "link", "scheduler", "Redis"))], rows
    )


def _bytes(figures: Figures) -> Lines:
    costs, rows = Costs(**figures["costs"]), []
    for users, row in _sizes(figures):
        cells = [f"{users // 10**6} million", f"{row['posts']:,}"]
        cells += [f"{redis_bytes(figures, users, row['posts'], n) / GB:,.1f}" for n in LENGTHS]
        cells += [f"{users * costs.user_bytes / GB:,.0f}"]
        cells += [f"{2 * users * list_bytes(figures, row['posts'], figures['n']) / GB:,.0f}"]
        shared = costs_for(figures, row, users).shared_bytes
        in_flight = Cluster(CORES[-1]).permits * users_per_task(users, CORES[-1]) * costs.user_bytes
        rows.append([*cells, f"{CORES[-1] * shared / GB:,.0f}", f"{in_flight / GB:,.1f}"])
    head = ["users", "posts", *(f"Redis GB, N = {n}" for n in LENGTHS), "GB to workers"]
    return _table(
        [*head, "GB to Redis and back", "shared GB, 1,000 workers", "GB on the way, 1,000 workers"], rows
    )


def _driver(figures: Figures) -> Lines:
    sizes = dict(figures["driver_bytes_per_user"])
    sizes["digests of parts"] = 32 / 1024
    rows = [
        [name, f"{size:,.0f}", *(f"{users * size / GB:,.1f}" for users in USERS)]
        for name, size in sizes.items()
    ]
    total = sum(sizes.values())
    rows.append(["**together**", f"**{total:,.0f}**", *(f"**{users * total / GB:,.0f}**" for users in USERS)])
    return _table(["what", "bytes a user", *(f"GB, {users // 10**6} million users" for users in USERS)], rows)


def _loading() -> Lines:
    rows = []
    for users in USERS:
        for each in INTERACTIONS_PER_USER:
            interactions = users * each
            cells = [f"{users // 10**6} million", str(each), f"{interactions / 1e9:,.1f}"]
            cells += [f"{interactions / LOAD_INTERACTIONS * LOAD_SECONDS / 3600:,.1f}"]
            rows.append([*cells, f"{interactions / LOAD_INTERACTIONS * FACTOR_SECONDS / 3600:,.1f}"])
    head = ["users", "interactions a user", "billion interactions", "hours to pull and count"]
    return _table([*head, "hours to fit the factors"], rows)


def _night(figures: Figures) -> Lines:
    rows = []
    for row in figures["scorer"]:
        nanoseconds = ns_per_pair(row, 16_384)
        per_user = nanoseconds * row["posts"] / 1e6
        pairs = [cores * NIGHT_SECONDS / nanoseconds * 1e9 for cores in CORES]
        cells = [f"{row['posts']:,}", *(f"{each / row['posts'] / 1e6:,.0f}" for each in pairs)]
        candidates = CANDIDATES * BOOSTER_NS / 1e6
        rows.append([*cells, f"{per_user:,.2f}", f"{candidates:,.1f}", f"{per_user / candidates:.2f}"])
    head = ["posts", *(f"million users, {cores:,} cores" for cores in CORES), "ms a user, all posts"]
    return _table([*head, f"ms a user, {CANDIDATES:,} candidates by LightGBM", "ratio"], rows)


def _candidates(figures: Figures) -> Lines:
    rows = [
        [
            f"{100 * row['share']:.0f} %",
            f"{100 * row['kept']:.1f} %",
            f"{100 * row['kept_of_first_ten']:.1f} %",
            f"{100 * row['lists_unchanged']:.1f} %",
        ]
        for row in figures["candidates"]
    ]
    head = ["candidates, share of all posts", f"of the exact {figures['n']}", "of the exact first 10"]
    return _table([*head, "lists that stay the same"], rows)


def draw(figures: Figures, path: Path) -> None:
    """Draw minutes over cores for each size, and the network as it was measured."""
    import matplotlib.pyplot as plt  # only this needs it

    figure, (reckoned, measured) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=(3, 1.4))
    colours = ("tab:blue", "tab:orange", "tab:green")
    for users, style in zip(USERS, ("-", "--"), strict=True):
        for row, colour in zip(figures["scorer"], colours, strict=False):
            minutes = [predict(figures, users, row, cores).seconds / 60 for cores in CURVE]
            label = f"{users // 10**6} million users x {row['posts']:,} posts"
            reckoned.loglog(CURVE, minutes, style, color=colour, label=label)
    reckoned.axhline(NIGHT_SECONDS / 60, color="tab:gray", linewidth=1)
    above = {"textcoords": "offset points", "xytext": (0, 4), "ha": "right"}
    reckoned.annotate("6 hours", (CURVE[-1], NIGHT_SECONDS / 60), **above)
    reckoned.xaxis.set_major_formatter("{x:,.0f}")
    reckoned.yaxis.set_major_formatter("{x:,.0f}")
    reckoned.set(title="computed", xlabel="workers of one core each", ylabel="minutes to score and write")
    reckoned.legend(fontsize=8)
    ways = figures["ways"]
    positions = range(len(ways))
    measured.plot(positions, [way["seconds"] for way in ways], "o", color="tab:blue", label="measured")
    measured.plot(
        positions, [way["predicted_seconds"] for way in ways], "x", color="tab:red", label="computed"
    )
    for position, way in zip(positions, ways, strict=True):
        measured.plot([position] * 2, [way["fastest"], way["slowest"]], color="tab:blue", linewidth=1)
    measured.set_xticks(positions, [way["way"].replace(" ", "\n") for way in ways])
    measured.set(title=f"{figures['users']:,} users x {figures['posts']:,} posts", ylabel="seconds")
    measured.set_xlim(-0.5, len(ways) - 0.5)
    measured.set_ylim(bottom=0)
    measured.legend(fontsize=8)
    for panel in (reckoned, measured):
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
