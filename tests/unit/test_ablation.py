from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation, ablation_report
from benchmarks.ablation import (
    CASES,
    Options,
    choose_cases,
)
from benchmarks.report import ALL_CUTOFFS
from benchmarks.scorers import ROOT
from contract.experiment import CONTROL, TEST


def test_variables_select_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NETWORK", "CUTOFFS", "CASES"):
        monkeypatch.delenv(name, raising=False)
    options = Options.from_environment()
    assert (options.network, options.cutoffs) == ("simulated", 1)
    assert options.cases[TEST] == CASES
    assert {case.name for case in CASES} - {case.name for case in options.cases[CONTROL]} == {
        "without affinity by cluster", "without factors", "without people like the user",
        "without sentence embeddings",
    }  # fmt: skip
    monkeypatch.setenv("NETWORK", "some/where/shop")
    monkeypatch.setenv("CUTOFFS", "2021-12-15")
    monkeypatch.setenv("CASES", " without factors ,")
    options = Options.from_environment()
    assert (options.network, options.cutoffs) == ("shop", (datetime(2021, 12, 15, tzinfo=UTC),))
    assert {variant: [case.name for case in cases] for variant, cases in options.cases.items()} == {
        TEST: ["base", "without factors"]
    }


def test_the_cases_that_others_are_compared_with_are_added() -> None:
    names = [case.name for case in choose_cases(CONTROL, {"control liked with 8 negatives"})]
    assert names == ["base", "liked", "liked with 8 negatives"]
    assert choose_cases(TEST, {"control liked with 8 negatives"}) == ()
    assert choose_cases(TEST, {TEST}) == choose_cases(TEST, set()) == CASES


@pytest.mark.parametrize("wrong", ["without magic", "control without factors"])
def test_an_invalid_case_ends_the_program(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASES", f"base,{wrong}")
    with pytest.raises(
        SystemExit, match=f"CASES has {wrong}; there are control, test, base, liked-if-viewed"
    ):
        Options.from_environment()


def make_row(case: str, *difference: float, **more: Any) -> dict[str, Any]:
    row = {"network": "shop", "cutoff": "2021-12-15", "case": case, "variant": "test", "recipe": "liked"}
    row |= {"ndcg_at_10": 0.04, "low": 0.03, "high": 0.05, "recall_at_20": 0.06, "coverage_at_10": 0.0123}
    row |= {"compared_with": "test base" if difference else None, "users": 1200, "seconds": 12.3}
    return row | dict(zip(ablation.DIFFERENCE, difference or (None,) * 3, strict=True)) | more


def test_rows_become_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = tmp_path / "models.md"
    document.write_text(f"before\n{ablation_report.START}\nold\n{ablation_report.END}\nafter\n")
    monkeypatch.setattr(ablation_report, "DOCUMENT", document)
    rows = [
        make_row("base"),
        make_row("without factors", -0.01, -0.02, -0.001),
        make_row("liked with 8 negatives", 0.001, -0.002, 0.004, compared_with="test liked"),
        {"network": "shop", "cutoff": "2021-12-15", "case": "without text", "variant": "test"}
        | {"left_out": "there are too few texts"},
    ]
    together = [{**row, "cutoff": ALL_CUTOFFS, "network": "films", "ndcg_at_10": 0.07} for row in rows[:1]]
    (tmp_path / "one.json").write_text(json.dumps(rows))
    (tmp_path / "two.json").write_text(json.dumps([rows[0], rows[3], rows[3], *together]))
    paths = [str(tmp_path / name) for name in ("one.json", "two.json")]
    monkeypatch.setattr(sys, "argv", ["ablation_report", *paths])
    ablation_report.main()
    ablation_report.main()  # the second call replaces the tables of the first
    head = "\n".join(ablation_report.HEAD)
    assert document.read_text() == (
        f"before\n{ablation_report.START}\n"
        f"**shop**, cutoff 2021-12-15, 1,200 users:\n\n{head}\n"
        "| test base | liked | 0.0400 | 0.0300 to 0.0500 |  | 0.0600 | 0.0123 | 12 |\n"
        "| test without factors | liked | 0.0400 | 0.0300 to 0.0500 | **-0.0100 [-0.0200, -0.0010]** "
        "| 0.0600 | 0.0123 | 12 |\n"
        "| test liked with 8 negatives | liked | 0.0400 | 0.0300 to 0.0500 "
        "| +0.0010 [-0.0020, +0.0040] to test liked | 0.0600 | 0.0123 | 12 |\n"
        "\n- test without text is left out: there are too few texts\n\n"
        f"**films**, all cutoffs together, 1,200 users:\n\n{head}\n"
        "| test base | liked | 0.0700 | 0.0300 to 0.0500 |  | 0.0600 | 0.0123 | 12 |\n"
        "\n- test without text is left out: there are too few texts\n"
        f"{ablation_report.END}\nafter\n"
    )


@pytest.mark.parametrize(
    ("module", "variables", "message"),
    [
        ("ablation", {"CASES": "without magic"}, "error: CASES has without magic; there are control"),
        ("ablation_report", {}, "error: name the files that `make bench-features JSON=FILE` wrote"),
    ],
)
def test_modules_run_as_programs(module: str, variables: dict[str, str], message: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{module}"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(message)


def test_the_document_has_the_marks() -> None:
    document = ablation_report.DOCUMENT.read_text(encoding="utf-8")
    assert ablation_report.replace_tables(document, [[make_row("base")]]) != document
