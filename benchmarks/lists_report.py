"""Write the rows of `make bench-lists` into docs/models.md as tables, and draw docs/lists.png.

    python -m benchmarks.lists_report mtweet.json grocery.json ...

Each file has the rows of one network. If a network has several cutoffs, the
table has the rows that pool all cutoffs, and the models that were left out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.lists import OUR_MODELS
from benchmarks.report import ALL_CUTOFFS, choose_rows, read_rows, replace_between
from benchmarks.scorers import ROOT

DOCUMENT, PLOT = ROOT / "docs" / "models.md", ROOT / "docs" / "lists.png"
START, END = "<!-- bench-lists: rows -->", "<!-- bench-lists: end -->"
HEAD = [
    "| model | NDCG@10 | 95 % interval | HitRate@5 | recall@20 | coverage@10 | overlap@10 | lift@10 |",
    "|---|---|---|---|---|---|---|---|",
]
PLOT_LINK = "![NDCG@10 of each model with its 95 % interval, by network](lists.png)"
PANEL_COLUMNS = 2

Row = dict[str, Any]


def main() -> None:
    """Read the files named on the command line, write the tables and draw the plot."""
    if len(sys.argv) < 2:
        sys.exit("error: name the files that `make bench-lists JSON=FILE` wrote")
    files = read_rows(sys.argv[1:])
    networks = [choose_rows(rows, "model") for rows in files]
    DOCUMENT.write_text(
        replace_tables(DOCUMENT.read_text(encoding="utf-8"), networks), encoding="utf-8", newline="\n"
    )
    draw(networks, PLOT)
    print(f"wrote {len(networks)} networks' tables into {DOCUMENT} and the plot {PLOT}")


def replace_tables(document: str, networks: list[list[Row]]) -> str:
    """Return the document with the plot and the networks' tables between its two marks.

    Raises
    ------
    ValueError
        The document lacks a mark.
    """
    tables = "\n\n".join("\n".join(table(rows)) for rows in networks)
    return replace_between(document, START, END, [PLOT_LINK, "", tables])


def table(rows: list[Row]) -> list[str]:
    """Return the lines of one network: its name and users, the table, differences, what was left out.

    Differences are our models minus the best recommender of other authors.
    """
    evaluated = [row for row in rows if "left_out" not in row]
    cutoff = evaluated[0]["cutoff"]
    cutoffs = "all cutoffs together" if cutoff == ALL_CUTOFFS else f"cutoff {cutoff}"
    lines = [f"**{evaluated[0]['network']}**, {cutoffs}, {evaluated[0]['users']:,} users:", "", *HEAD]
    for row in evaluated:
        name = f"**{row['model']}**" if row["model"] in OUR_MODELS else row["model"]
        metrics = [f"{row[key]:.4f}" for key in ("hitrate_at_5", "recall_at_20")]
        metrics += [f"{row[key]:.3f}" for key in ("coverage_at_10", "overlap_at_10")]
        metrics += [f"{row['popularity_lift_at_10']:.1f}"]
        interval = f"{row['low']:.4f} to {row['high']:.4f}"
        lines.append(f"| {' | '.join([name, format(row['ndcg_at_10'], '.4f'), interval, *metrics])} |")
    lines.append("")
    for row in evaluated:
        if "minus_best" in row:
            bounds = f"[{row['minus_best_low']:+.4f}, {row['minus_best_high']:+.4f}]"
            lines.append(f"- {row['model']} minus {row['best_other']}: {row['minus_best']:+.4f} {bounds}")
    lines += [f"- {row['model']} is left out: {row['left_out']}" for row in rows if "left_out" in row]
    return lines


def draw(networks: list[list[Row]], path: Path) -> None:
    """Plot NDCG@10 of each model with its interval, one panel per network."""
    panel_columns = min(PANEL_COLUMNS, len(networks))
    panel_rows = -(-len(networks) // panel_columns)
    size = (5.5 * panel_columns, 3.8 * panel_rows)
    figure, panels = plt.subplots(panel_rows, panel_columns, figsize=size, squeeze=False)
    for panel in panels.flat[len(networks) :]:
        panel.set_visible(False)
    for rows, panel in zip(networks, panels.flat, strict=False):
        evaluated = [row for row in rows if "left_out" not in row][::-1]
        for y, row in enumerate(evaluated):
            colour = "tab:blue" if row["model"] in OUR_MODELS else "tab:gray"
            panel.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2)
            panel.plot(row["ndcg_at_10"], y, "o", color=colour)
        panel.set_yticks(range(len(evaluated)), [row["model"] for row in evaluated])
        panel.set(title=f"{evaluated[0]['network']}, {evaluated[0]['users']:,} users", xlabel="NDCG@10")
        panel.set_xlim(left=0)
        panel.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
