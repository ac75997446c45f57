"""The folders hold to their places: who may import whom, no connection at import, no machine's paths."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class ImportRule:
    """What one package may import of ours, and what it never imports of others'."""

    ours: frozenset[str]
    never: frozenset[str]


OURS = frozenset({"contract", "batch", "serving", "scheduler", "console", "demo", "benchmarks", "tests"})
NUMERIC = frozenset({"numpy", "pandas", "scipy", "sklearn", "lightgbm"})

IMPORT_RULES = {
    "contract": ImportRule(frozenset(), NUMERIC | {"sqlalchemy", "psycopg2", "flask"}),
    "serving": ImportRule(frozenset({"contract"}), NUMERIC | {"sqlalchemy", "psycopg2"}),
    "batch": ImportRule(frozenset({"contract"}), frozenset({"flask", "gunicorn", "apscheduler"})),
    "scheduler": ImportRule(frozenset({"contract", "batch"}), NUMERIC | {"flask", "gunicorn"}),
    "console": ImportRule(frozenset({"contract", "batch", "scheduler"}), NUMERIC),
}


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and top-level package of every import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [str(word.value) for word in node.args[:1] if isinstance(word, ast.Constant)]
        for name in names:
            yield node.lineno, name.partition(".")[0]  # type: ignore[attr-defined]


def broken_rules(root: Path) -> list[str]:
    """Name every import under `root` that its package must not make."""
    found = []
    for package, rule in IMPORT_RULES.items():
        for path in sorted((root / package).rglob("*.py")):
            for line, name in imports(path.read_text()):
                foreign = name in OURS - rule.ours - {package}
                if foreign or name in rule.never:
                    found.append(f"{path.relative_to(root)}:{line}: {package} must not import {name}")
    return found


def test_imports_point_one_way() -> None:
    for package in IMPORT_RULES:
        assert list((ROOT / package).glob("*.py")), f"{package} is not there to look at"
    assert broken_rules(ROOT) == []


BATCH = ROOT / "batch"


def folders_imported(folder: str) -> set[str]:
    """Return which of batch's other folders a folder of batch imports from."""
    found = set()
    for path in (BATCH / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("batch."):
                found.add(str(node.module).split(".")[1])
    return {name for name in found - {folder} if (BATCH / name).is_dir()}


def test_the_folders_of_batch_import_in_one_direction() -> None:
    folders = {path.parent.name for path in BATCH.glob("*/__init__.py")}
    assert {"loading", "publishing"} <= folders
    order = TopologicalSorter({folder: folders_imported(folder) for folder in folders}).static_order()
    assert set(order) == folders  # a circle raises CycleError, which names it


@pytest.mark.parametrize(
    ("package", "source", "name"),
    [
        ("contract", "import batch", "batch"),
        ("contract", "from pandas import DataFrame", "pandas"),
        ("contract", "import sqlalchemy as sa", "sqlalchemy"),
        ("serving", "from batch.postgres import open_engine", "batch"),
        ("serving", "def late():\n    import numpy as np", "numpy"),
        ("serving", "import scheduler.schedule", "scheduler"),
        ("serving", "import importlib\nimportlib.import_module('sklearn.metrics')", "sklearn"),
        ("batch", "from serving import app", "serving"),
        ("batch", "import os, demo.cli", "demo"),
        ("batch", "from benchmarks import scoring", "benchmarks"),
        ("scheduler", "__import__('serving')", "serving"),
        ("scheduler", "try:\n    import lightgbm\nexcept ImportError:\n    pass", "lightgbm"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, package: str, source: str, name: str) -> None:
    module = tmp_path / package / "inner" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text(source)
    (complaint,) = broken_rules(tmp_path)
    assert complaint.endswith(f"{package} must not import {name}")


def test_imports_that_follow_the_rules_are_left_alone(tmp_path: Path) -> None:
    for package, source in [
        ("batch", "import numpy, batch.source\nfrom contract import keys"),
        ("serving", "import flask\nfrom contract.codec import decode_list\nfrom . import state"),
        ("scheduler", "from batch.runs.ledger import latest_start"),
        ("demo", "import batch, serving, scheduler, contract"),
    ]:
        (tmp_path / package).mkdir()
        (tmp_path / package / "module.py").write_text(source)
    assert broken_rules(tmp_path) == []


def modules(root: Path) -> list[str]:
    """Name every module that may be imported.

    Not `__main__.py`, which runs the command line, nor `gunicorn.conf.py`, which
    is no module but a file that gunicorn reads.
    """
    paths = [path for package in IMPORT_RULES for path in sorted((root / package).rglob("*.py"))]
    imported = [path for path in paths if path.name not in ("__main__.py", "gunicorn.conf.py")]
    names = [path.relative_to(root).with_suffix("") for path in imported]
    return [".".join(name.parts).removesuffix(".__init__") for name in names]


def connects_at_import(root: Path, names: list[str]) -> bool:
    """Import the modules in a process of their own, and tell whether it knocked at Postgres or Redis."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        urls = {
            "DATABASE_URL": f"postgresql://postgres@{address}/postgres?connect_timeout=2",
            "REDIS_URL": f"redis://{address}/0",
        }
        code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
        environment = os.environ | urls
        done = subprocess.run([sys.executable, "-c", code, *names], cwd=root, env=environment, check=False)
        listener.setblocking(False)
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            assert done.returncode == 0
            return False
        return True


def test_no_module_connects_when_it_is_imported() -> None:
    names = modules(ROOT)
    assert {"contract.settings", "serving.wsgi", "batch.postgres", "scheduler.service"} <= set(names)
    assert not connects_at_import(ROOT, names)


@pytest.mark.parametrize(
    "source",
    [
        "import os, redis\nredis.Redis.from_url(os.environ['REDIS_URL'], socket_timeout=1).ping()",
        "import os, psycopg2\npsycopg2.connect(os.environ['DATABASE_URL'])",
    ],
)
def test_a_connection_at_import_is_found(tmp_path: Path, source: str) -> None:
    (tmp_path / "eager.py").write_text(source)
    assert connects_at_import(tmp_path, ["eager"])


MACHINE_PATH = re.compile(r"(?<![\w./*-])/(root|work|home|Users)/")


def test_no_file_of_the_project_names_a_path_of_somebodys_machine() -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    files = [path for path in paths if path.is_file()]
    assert Path(__file__) in files
    naming = [
        str(path.relative_to(ROOT)) for path in files if MACHINE_PATH.search(path.read_text(errors="replace"))
    ]
    assert naming == []


def test_a_path_of_a_machine_is_recognised() -> None:
    for folder in ("root", "work", "home"):
        assert MACHINE_PATH.search(f'open("/{folder}/someone/rows.csv")')
        assert not MACHINE_PATH.search(f"https://example.org/{folder}/page")


def test_an_operator_who_looks_at_runs_does_not_wait_for_what_learns() -> None:
    heavy = ["lightgbm", "numba", "optuna", "pandas", "sklearn"]
    light = "blocklist, doctor, experiment, lookup, prune, runs"
    look = f"from batch.commands import {light}"
    loaded = f"print([name for name in {heavy} if name in sys.modules])"
    code = f"import sys, batch.cli, console.app; {look}; {loaded}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
