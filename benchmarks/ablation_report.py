"""Write the rows of `make bench-features` into docs/models.md as tables.

    python -m benchmarks.ablation_report mtweet.json grocery.json ...

Each file has the rows of one network. If a network has several cutoffs, the
table has the rows that pool all cutoffs, and the cases that were left out.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.report import ALL_CUTOFFS, choose_rows, read_rows, replace_between
from benchmarks.scorers import ROOT

DOCUMENT = ROOT / "docs" / "models.md"
START, END = "<!-- bench-features: rows -->", "<!-- bench-features: end -->"
HEAD = [
    "| case | recipe | NDCG@10 | 95 % interval | difference | recall@20 | coverage@10 | seconds |",
    "|---|---|---|---|---|---|---|---|",
]

Row = dict[str, Any]


def main() -> None:
    """Read the files named on the command line and write the tables."""
    if len(sys.argv) < 2:
        sys.exit("error: name the files that `make bench-features JSON=FILE` wrote")
    files = read_rows(sys.argv[1:])
    networks = [choose_rows(rows, "variant", "case") for rows in files]
    DOCUMENT.write_text(
        replace_tables(DOCUMENT.read_text(encoding="utf-8"), networks), encoding="utf-8", newline="\n"
    )
    print(f"wrote {len(networks)} networks' tables into {DOCUMENT}")


def replace_tables(document: str, networks: list[list[Row]]) -> str:
    """Return the document with the networks' tables between its two marks.

    Raises
    ------
    ValueError
        The document lacks a mark.
    """
    return replace_between(document, START, END, ["\n\n".join("\n".join(table(rows)) for rows in networks)])


def table(rows: list[Row]) -> list[str]:
    """Return the lines of one network: its name and users, the table, what was left out.

    A difference names the case it is compared with, unless that is the base of
    the variant. It is bold if its interval does not contain 0.
    """
    evaluated = [row for row in rows if "left_out" not in row]
    cutoff = evaluated[0]["cutoff"]
    cutoffs = "all cutoffs together" if cutoff == ALL_CUTOFFS else f"cutoff {cutoff}"
    lines = [f"**{evaluated[0]['network']}**, {cutoffs}, {evaluated[0]['users']:,} users:", "", *HEAD]
    for row in evaluated:
        cells = [
            f"{row['variant']} {row['case']}",
            row["recipe"],
            f"{row['ndcg_at_10']:.4f}",
            f"{row['low']:.4f} to {row['high']:.4f}",
            _difference(row),
            f"{row['recall_at_20']:.4f}",
            f"{row['coverage_at_10']:.4f}",
            f"{row['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    left_out = [row for row in rows if "left_out" in row]
    if left_out:
        lines.append("")
    lines += [f"- {row['variant']} {row['case']} is left out: {row['left_out']}" for row in left_out]
    return lines


def _difference(row: Row) -> str:
    if row["compared_with"] is None:
        return ""
    low, high = row["difference_low"], row["difference_high"]
    value = f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
    if low > 0 or high < 0:
        value = f"**{value}**"
    return value if row["compared_with"] == f"{row['variant']} base" else f"{value} to {row['compared_with']}"


if __name__ == "__main__":
    main()
