"""The SQL of README against Postgres: the views and the role are enough for a night."""

from __future__ import annotations

import re
from pathlib import Path

import redis
import sqlalchemy as sa

from batch.loading.schema import OPTIONAL, check_views
from contract.columns import AUTHOR_ID
from demo.simulate import simulate
from tests.support.batch import execute, live_run, make_engine, query, run_batch, run_here
from tests.support.readme_checks import ROOT

SQL = re.findall(r"^```sql\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_views_and_the_role_in_readme_are_enough_for_a_night(
    database_url: str, redis_url: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    views, role = SQL
    simulate(database_url, users=100, posts=50, interactions=5_000, seed=1)
    execute(database_url, "DROP SCHEMA recs CASCADE", views, role)
    url = sa.make_url(database_url).set(username="overnight", password="change-me")
    as_role = url.render_as_string(hide_password=False)
    try:
        with make_engine(as_role).connect() as connection:
            posts = {"post_id", *OPTIONAL["posts"]} - {AUTHOR_ID}  # the simulated posts have no author
            assert set(check_views(connection).posts) >= posts
            for table in ('"user"', "post", "feed_action"):
                granted = sa.text(f"SELECT has_table_privilege('{table}', 'SELECT')")
                assert not connection.scalar(granted)
        night = run_here(
            "run", "--variant", "control", database_url=as_role, redis_url=redis_url, model_dir=tmp_path
        )
        assert night.returncode == 0, night.stderr
        runs = query(database_url, "SELECT run_id, state FROM recs.runs")
        assert runs == [(live_run(redis_client), "live")]
        listed = run_batch("runs", database_url=as_role, redis_url=redis_url, model_dir=tmp_path)
        assert listed.stdout.splitlines()[1].startswith(runs[0][0])
    finally:
        execute(database_url, "DROP OWNED BY overnight", "DROP ROLE overnight")
