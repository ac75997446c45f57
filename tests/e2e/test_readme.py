"""README and the guide against the code: commands, settings, keys, routes, columns, files, SQL and links."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from batch.experiment.assignment import variant_sql
from batch.loading.schema import OPTIONAL, check_views
from contract.experiment import Experiment
from contract.settings import Settings
from demo.simulate import simulate
from tests.support.batch_support import execute, live_run, make_engine, query, run_batch, run_here
from tests.support.readme_checks import (
    CHECKS,
    ROOT,
    wrong_in_columns,
    wrong_in_command_table,
    wrong_in_compose,
    wrong_in_exit_codes,
    wrong_in_folders,
    wrong_in_keys,
    wrong_in_make,
    wrong_in_python_commands,
    wrong_in_routes,
    wrong_in_settings,
    wrong_links,
)

README = (ROOT / "README.md").read_text() + (ROOT / "docs" / "guide.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SQL = re.findall(r"^```sql\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_readme_agrees_with_the_code(check: Callable[[str], list[str]]) -> None:
    assert check(README) == []


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (wrong_in_make, "make clean", "make clear"),
        (wrong_in_make, "PORT=8080", "DOOR=8080"),
        (wrong_in_python_commands, "--seed 7", "--salt 7"),
        (wrong_in_python_commands, "-m batch runs", "-m batch nights"),
        (wrong_in_python_commands, "scheduler --check", "scheduler --verify"),
        (wrong_in_command_table, "`--count NUMBER`", "Some"),
        (wrong_in_command_table, "| `python -m demo oracle` |", "| `python -m demo up` |"),
        (wrong_in_settings, "| `OVERNIGHT_TOP_N` | `100` |", "| `OVERNIGHT_TOP_N` | `99` |"),
        (wrong_in_settings, "`OVERNIGHT_KEEP_RUNS` + 1", "`OVERNIGHT_KEPT` + 1"),
        (wrong_in_keys, "| `recs:blocked` | set |", "| `recs:blocked` | hash |"),
        (wrong_in_keys, "| `recs:help` |", "| `recs:about` |"),
        (wrong_in_keys, "batch GET recs:live:control", "batch GET recs:live:champion"),
        (wrong_in_keys, "HGET recs:posts", "GET recs:posts"),
        (wrong_in_keys, "'recs:run:*:manifest'", "'recs:runs:*'"),
        (wrong_in_routes, "### `GET /posts/popular`", "### `GET /posts/best`"),
        (wrong_in_routes, "8000/posts/popular", "8000/posts/best"),
        (wrong_in_exit_codes, "| 4 |", "| 5 |"),
        (wrong_in_columns, "`recs.posts.view_count`", "`recs.posts.views`"),
        (wrong_in_folders, "\nscheduler/ ", "\nplanner/ "),
        (wrong_in_compose, "logs serving", "logs server"),
    ],
)
def test_a_mismatch_is_found(check: Callable[[str], list[str]], right: str, wrong: str) -> None:
    assert right in README
    assert check(README.replace(right, wrong)) != []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert wrong_links(page.read_text(), page.parent) == []


@pytest.mark.parametrize("link", ["CHANGES.md", "#keys", "docs/guide.md#keys", "docs"])
def test_a_link_that_leads_nowhere_is_found(link: str) -> None:
    right = "[a](CHANGELOG.md) [b](#c) [d](docs/guide.md#the-experiment) [e](https://example.org/#keys)"
    assert wrong_links(f"# C\n{right} [f]({link})", ROOT) == [link]


def test_the_variant_in_sql_is_the_one_that_the_code_makes() -> None:
    told = variant_sql(
        "user_id", Experiment("default", Settings().experiment.salt, Settings().experiment.percent_test)
    )
    assert " ".join(told.split()) in " ".join(SQL[2].split())


def test_the_views_and_the_role_in_readme_are_enough_for_a_night(
    database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    views, role, _ = SQL
    simulate(database_url, users=100, posts=50, interactions=5_000, seed=1)
    execute(database_url, "DROP SCHEMA recs CASCADE", views, role)
    url = sa.make_url(database_url).set(username="overnight", password="change-me")
    as_role = url.render_as_string(hide_password=False)
    try:
        with make_engine(as_role).connect() as connection:
            assert set(check_views(connection).posts) >= {"post_id", *OPTIONAL["posts"]}
            for table in ('"user"', "post", "feed_action"):
                may = sa.text(f"SELECT has_table_privilege('{table}', 'SELECT')")
                assert not connection.scalar(may)
        done = run_here(
            "run", "--variant", "control", database_url=as_role, redis_url=redis_url, model_dir=tmp_path
        )
        assert done.returncode == 0, done.stderr
        found = query(database_url, "SELECT run_id, state FROM recs.runs")
        assert found == [(live_run(redis_client), "live")]
        listed = run_batch("runs", database_url=as_role, redis_url=redis_url, model_dir=tmp_path)
        assert listed.stdout.splitlines()[1].startswith(found[0][0])
    finally:
        execute(database_url, "DROP OWNED BY overnight", "DROP ROLE overnight")
