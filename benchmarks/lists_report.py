"""Writes the rows of `make bench-lists` into docs/models.md as a table, and draws docs/lists.png.

    python -m benchmarks.lists_report mtweet.json grocery.json ...

Each file holds the rows of one network. Of a network with several cutoffs only
the rows of all cutoffs together are shown.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.lists import ALL_OURS
from benchmarks.report import ALL_CUTOFFS, choose_rows, read_rows, replace_between
from benchmarks.scorers import ROOT

DOCUMENT, PLOT = ROOT / "docs" / "models.md", ROOT / "docs" / "lists.png"
START, END = "<!-- bench-lists: rows -->", "<!-- bench-lists: end -->"
HEAD = [
    "| model | NDCG@10 | 95 % interval | HitRate@5 | recall@20 | coverage@10 | overlap@10 | lift@10 |",
    "|---|---|---|---|---|---|---|---|",
]
PICTURE = "![NDCG@10 of each model with its 95 % interval, by network](lists.png)"
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
    """Return the document with the picture and the networks' tables between its two marks.

    Raises
    ------
    ValueError
        The document lacks a mark.
    """
    tables = "\n\n".join("\n".join(table(rows)) for rows in networks)
    return replace_between(document, START, END, [PICTURE, "", tables])


def table(rows: list[Row]) -> list[str]:
    """Return the lines for one network: what was judged, the table, ours less the best of the others."""
    measured = [row for row in rows if "left_out" not in row]
    cutoff = measured[0]["cutoff"]
    when = "all cutoffs together" if cutoff == ALL_CUTOFFS else f"cutoff {cutoff}"
    lines = [f"**{measured[0]['network']}**, {when}, {measured[0]['users']:,} users:", "", *HEAD]
    for row in measured:
        name = f"**{row['model']}**" if row["model"] in ALL_OURS else row["model"]
        figures = [f"{row[key]:.4f}" for key in ("hitrate_at_5", "recall_at_20")]
        figures += [f"{row[key]:.3f}" for key in ("coverage_at_10", "overlap_at_10")]
        figures += [f"{row['popularity_lift_at_10']:.1f}"]
        interval = f"{row['low']:.4f} to {row['high']:.4f}"
        lines.append(f"| {' | '.join([name, format(row['ndcg_at_10'], '.4f'), interval, *figures])} |")
    lines.append("")
    for row in measured:
        if "minus_best" in row:
            bounds = f"[{row['minus_best_low']:+.4f}, {row['minus_best_high']:+.4f}]"
            lines.append(f"- {row['model']} less {row['best_other']}: {row['minus_best']:+.4f} {bounds}")
    lines += [f"- {row['model']} is left out: {row['left_out']}" for row in rows if "left_out" in row]
    return lines


def draw(networks: list[list[Row]], path: Path) -> None:
    """Draw NDCG@10 with its interval for each model, a panel for each network."""
    across = min(PANEL_COLUMNS, len(networks))
    down = -(-len(networks) // across)
    figure, panels = plt.subplots(down, across, figsize=(5.5 * across, 3.8 * down), squeeze=False)
    for panel in panels.flat[len(networks) :]:
        panel.set_visible(False)
    for rows, panel in zip(networks, panels.flat, strict=False):
        measured = [row for row in rows if "left_out" not in row][::-1]
        for height, row in enumerate(measured):
            colour = "tab:blue" if row["model"] in ALL_OURS else "tab:gray"
            panel.plot([row["low"], row["high"]], [height, height], color=colour, linewidth=2)
            panel.plot(row["ndcg_at_10"], height, "o", color=colour)
        panel.set_yticks(range(len(measured)), [row["model"] for row in measured])
        panel.set(title=f"{measured[0]['network']}, {measured[0]['users']:,} users", xlabel="NDCG@10")
        panel.set_xlim(left=0)
        panel.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
