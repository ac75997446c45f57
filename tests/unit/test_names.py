"""Names use the field's terms: words that the project has dropped do not come back as names."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

DROPPED = {
    "format_*, render_* or describe_*": "told told_standing _told",
    "readable_errors": "explained _explained",
    "row, rows or index": "place places places_of blocked_places",
    "call_with_deadline": "within",
    "copy_out": "stream_rows",
    "Stores; Job": "Night",
    "Impressions": "Shown",
    "cohorts": "people people_log_odds",
    "load_dataset, Dataset": "Gathered gathered half_way",
    "FactorPosterior": "Side",
    "LeafTables, LeafBlock": "PartTables Part",
    "CompiledForest, compile_forest": "PostSide",
    "TopNBuffers, push": "Shelves offer",
    "sum_rows": "add_rows",
    "ScoredRows, score_holdout, score_rows": "Judged judged judge judges JUDGES",
    "PointwiseRows, concat_rows": "Pooled",
    "BootstrapResult, weighted": "Measured weighed",
    "CatalogueCase, build_case": "Question",
    "render": "show_evaluation",
    "GateInputs, ListStats": "Facts Tally tally of_five",
    "liked_check": "joined_back",
    "compare_with_live, LiveComparison": "beside_live BesideLive posts_in_its_first",
    "Measurement": "Found",
    "not_comparable_because": "why_not",
    "check_memory, require_memory": "before_writing check_room",
    "clean_up, runs_to_prune, sync_manifest_states, reconcile": "tidy not_kept restate agree",
    "RunStatus, Outcome, ListPosition": "Standing standing",
    "rollback_candidates, switch_lock, other_runs": "to_go_back_to switching",
    "StaleUsers, fingerprints": "Due marks",
    "SplitPeriod, TimeSplit": "Split",
    "SplitChange": "Recorded",
    "guardrails": "rails",
    "MIN_EFFECT, days_needed": "WORTH days_more",
    "user_examples, UserExample": "glance portraits Portrait",
    "PostInQuestion": "Asked",
    "key_counts, ledger_rows, LedgerRow, orphans, fix": "census entered Entered leftovers mend examined",
    "alert_on_failure, SchedulerAlerts, LatenessMonitor": "sent_if_it_fails Alarm LateWatch tell_nobody",
    "FastPath, has_valid_token": "Front knows_one",
    "warnings": "complaints",
    "LazyCluster, YIELD_SECONDS": "LateCluster BREATH_SECONDS",
    "real_network, ground_truth": "tastes night_lists",
    "run_fault, FaultResult, ExpectedBehaviour": "befall Befallen Meanwhile",
    "LOCK_TIMEOUT_SECONDS, POLL_SECONDS": "PATIENCE_SECONDS LOOK_SECONDS",
}
PATTERNS = {
    r"(MOST|FEWEST|LEAST|GREATEST)_\w+": "MAX_* or MIN_*",
    r"\w+_AT_A_TIME": "*_BATCH",
}
DROPPED_MODULES = {
    *("judging", "doctoring", "inspecting", "refreshing", "learning", "reporting", "alerting", "similarity"),
    *("fire", "layout", "interrupt", "within", "people", "pairs", "worth", "vectors", "strips", "tally"),
    *("facts", "beside_live", "joined_back", "saved", "karpov", "tastes", "account", "truth", "answers"),
    *("web", "night_lists", "befall", "wire", "asking", "choices", "ways", "bare", "front", "guard"),
    *("observe", "alarm", "late"),
}


def python_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split()]


def names_in(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of everything that a file defines: functions, classes, parameters, variables."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def complaint(name: str) -> str | None:
    """Return what a dropped name is called now; None for any other name."""
    for new, dropped in DROPPED.items():
        if name in dropped.split():
            return new
    return next((new for pattern, new in PATTERNS.items() if re.fullmatch(pattern, name)), None)


def test_dropped_words_do_not_come_back_as_names() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name} is called {new}"
        for path in python_files()
        for line, name in names_in(path.read_text())
        if (new := complaint(name))
    ]
    assert found == []


def test_dropped_words_do_not_come_back_as_modules() -> None:
    names = {part for path in python_files() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert names & DROPPED_MODULES == set()


def test_a_dropped_name_is_found_wherever_it_is_defined() -> None:
    source = "def told(place):\n    MOST_ROWS = 1\n    import x as tally\n    for places in []: pass\n"
    assert {name for _, name in names_in(source) if complaint(name)} == {
        "told", "place", "MOST_ROWS", "tally", "places",
    }  # fmt: skip
