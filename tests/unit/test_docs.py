"""README and docs against the code: commands, settings, keys, routes, columns, rules, files and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from batch.experiment.history import variant_sql
from contract.experiment import Experiment
from contract.settings import Settings
from tests.support.readme_checks import (
    ALL_PAGES,
    CHECKS,
    ROOT,
    Check,
    check_alerts,
    check_columns,
    check_command_table,
    check_compose,
    check_exit_codes,
    check_files,
    check_folders,
    check_gate_rules,
    check_key_examples,
    check_keys,
    check_log_fields,
    check_make,
    check_paths,
    check_python_commands,
    check_requests,
    check_routes,
    check_setting_names,
    check_settings,
    pages_of,
    text_for,
    wrong_links,
)

PAGES = pages_of("CHANGELOG.md", *ALL_PAGES)
MAX_README_LINES = 250


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_docs_agree_with_the_code(check: Check) -> None:
    assert check(text_for(check)) == []


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (check_make, "make clean", "make clear"),
        (check_make, "PORT=8080", "DOOR=8080"),
        (check_python_commands, "--seed 7", "--salt 7"),
        (check_python_commands, "-m batch runs", "-m batch nights"),
        (check_python_commands, "scheduler --check", "scheduler --verify"),
        (check_command_table, "`--count NUMBER`", "Some"),
        (check_command_table, "| `python -m demo oracle` |", "| `python -m demo up` |"),
        (check_settings, "| `OVERNIGHT_TOP_N` | `100` |", "| `OVERNIGHT_TOP_N` | `99` |"),
        (check_setting_names, "`OVERNIGHT_KEEP_RUNS` + 1", "`OVERNIGHT_KEPT` + 1"),
        (check_keys, "| `recs:blocked` | set |", "| `recs:blocked` | hash |"),
        (check_keys, "| `recs:help` |", "| `recs:about` |"),
        (check_key_examples, "batch GET recs:live:control", "batch GET recs:live:champion"),
        (check_key_examples, "HGET recs:posts", "GET recs:posts"),
        (check_key_examples, "'recs:run:*:manifest'", "'recs:runs:*'"),
        (check_routes, "## `GET /posts/popular`", "## `GET /posts/best`"),
        (check_requests, "8000/posts/popular", "8000/posts/best"),
        (check_exit_codes, "| 4 |", "| 5 |"),
        (check_columns, "`recs.posts.view_count`", "`recs.posts.views`"),
        (check_folders, "\nscheduler/ ", "\nplanner/ "),
        (check_folders, "\n  gate/ ", "\n  door/ "),
        (check_paths, "`batch/pipeline.py`", "`batch/conductor.py`"),
        (check_gate_rules, "| `coverage` |", "| `covers` |"),
        (check_alerts, "| `run_late` |", "| `run_slow` |"),
        (check_log_fields, "| `pid` |", "| `process` |"),
        (check_files, "RUN/model.txt`", "RUN/forest.txt`"),
        (check_compose, "logs serving", "logs server"),
    ],
)
def test_a_mismatch_is_found(check: Check, right: str, wrong: str) -> None:
    text = text_for(check)
    assert right in text
    assert check(text.replace(right, wrong)) != []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert wrong_links(page.read_text(), page.parent) == []


@pytest.mark.parametrize("link", ["CHANGES.md", "#keys", "docs/guide.md#keys", "docs"])
def test_a_link_that_leads_nowhere_is_found(link: str) -> None:
    right = "[a](CHANGELOG.md) [b](#c) [d](docs/guide.md#the-experiment) [e](https://example.org/#keys)"
    assert wrong_links(f"# C\n{right} [f]({link})", ROOT) == [link]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_the_sql_of_the_guide_gives_the_variant_that_the_code_gives() -> None:
    guide = (ROOT / "docs/guide.md").read_text()
    (sql,) = re.findall(r"^```sql\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    settings = Settings().experiment
    expected = variant_sql("user_id", Experiment("default", settings.salt, settings.percent_test))
    assert " ".join(expected.split()) in " ".join(sql.split())
