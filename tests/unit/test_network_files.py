"""Networks in files: the format and name of a folder, and errors that name the invalid file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from contract.errors import OvernightError
from demo import course_files
from demo.network import NetworkError
from demo.network_folders import choose_folder, find_folder
from demo.processes import ROOT, DemoUsageError
from demo.real_network import Format, detect_format, load_network
from tests.support.network_files import (
    UNREACHABLE,
    WHEN,
    Change,
    make_tables,
    with_column,
    write_course_files,
    write_network,
)


@pytest.mark.parametrize(
    ("time", "message"),
    [("31/07/2013", "'31/07/2013' is not in ISO 8601"), ("1375229564", "'1375229564' is not in ISO 8601")],
)
@pytest.mark.parametrize(("table", "column"), [("interactions", "happened_at"), ("posts", "created_at")])
def test_the_error_names_an_invalid_time(
    tmp_path: Path, table: str, column: str, time: str, message: str
) -> None:
    content = make_tables()
    with_column(table, column, WHEN, time)(content)
    with pytest.raises(OvernightError) as raised:
        load_network(UNREACHABLE, write_network(tmp_path, ".csv", content))
    assert str(raised.value).endswith(f"{table}.csv: '{column}' must be a time such as {WHEN}: {message}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.csv", b"", "users.csv cannot be read: "),
        ("interactions.csv", b"", "interactions.csv cannot be read: "),
        ("posts.csv", b"post_id,a\n1,2\n3,4,5\n", "posts.csv cannot be read: "),
        (
            "interactions.csv",
            b"user_id,post_id,action,happened_at\n1,2\n",
            "interactions.csv cannot be read: ",
        ),
        ("users.csv", "user_id,city\n1,K\xf6ln\n".encode("latin-1"), "'city' is not text in UTF-8"),
        ("users.csv", b"user_id,a,a\n1,2,3\n", "has the column 'a' more than once"),
        ("users.csv", b"user_id," + b"x" * 64 + b"\n1,2\n", "must have 1 to 63 bytes"),
        ("users.csv", b"user_id,\n1,2\n", "the column name '' must have"),
    ],
)
def test_the_error_names_a_damaged_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_network(tmp_path, ".csv", make_tables())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OvernightError) as raised:
        load_network(UNREACHABLE, tmp_path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_column("posts", "post_id", True, False), r"posts\.parquet: 'post_id' must be a whole number: "),
        (
            with_column("posts", "post_id", "a", "b"),
            r"interactions\.parquet: 'post_id' must be text; it is of type int64",
        ),
    ],
)
def test_the_error_names_ids_of_a_wrong_type(tmp_path: Path, change: Change, message: str) -> None:
    content = make_tables()
    change(content)
    with pytest.raises(OvernightError, match=message):
        load_network(UNREACHABLE, write_network(tmp_path, ".parquet", content))


@pytest.mark.parametrize("ending", [".parquet", ".csv.gz"])
@pytest.mark.parametrize("name", ["users", "posts", "interactions"])
def test_the_error_names_a_truncated_file(tmp_path: Path, name: str, ending: str) -> None:
    path = write_network(tmp_path, ending, make_tables()) / f"{name}{ending}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OvernightError, match=f"{name}{ending} cannot be read: "):
        load_network(UNREACHABLE, tmp_path)


def test_the_error_for_an_unknown_format_lists_the_known_files(tmp_path: Path) -> None:
    with pytest.raises(OvernightError, match="there is no folder"):
        detect_format(tmp_path / "nowhere")
    with pytest.raises(OvernightError) as raised:
        detect_format(tmp_path)
    for name in ("users", "posts", "interactions", ".parquet", ".csv.gz", "liked_views.parquet"):
        assert name in str(raised.value)
    write_network(tmp_path, ".csv", make_tables())
    assert detect_format(tmp_path) is Format.VIEWS
    write_network(tmp_path, ".parquet", {"posts": make_tables()["posts"]})
    with pytest.raises(OvernightError, match=r"has posts\.parquet and posts\.csv; keep one"):
        detect_format(tmp_path)
    (tmp_path / "posts.parquet").unlink()
    (tmp_path / "posts.csv").unlink()
    with pytest.raises(OvernightError, match=r"no file posts\.parquet or posts\.csv or posts\.csv\.gz"):
        detect_format(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    (tmp_path / course_files.LIKED).touch()
    assert detect_format(tmp_path) is Format.FIRST_NETWORK


def test_the_format_of_the_first_network_is_detected(real_network: Path) -> None:
    assert detect_format(real_network) is Format.FIRST_NETWORK


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden"])
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DemoUsageError, match="cannot be called"):
        choose_folder(tmp_path, name, None)


def test_a_network_has_the_name_of_its_folder_and_the_simulated_one_is_in_the_base_folder(
    tmp_path: Path,
) -> None:
    assert choose_folder(tmp_path, None, Path("/somewhere/films")).path == tmp_path / "networks" / "films"
    assert choose_folder(tmp_path, None, None).path == tmp_path
    assert find_folder(tmp_path, None).path == tmp_path
    assert choose_folder(tmp_path / "a b", "two words", None).command("exec") == (
        f"-m demo --dir '{tmp_path}/a b' exec --name 'two words'"
    )
    assert choose_folder(ROOT / ".demo", None, None).command("exec") == "-m demo exec"


def test_the_error_names_the_first_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"nowhere/users\.csv\.gz is missing"):
        course_files.load_network(UNREACHABLE, tmp_path / "nowhere")


def set_columns(path: Path, **values: str) -> None:
    rows = pd.read_csv(path, dtype=str)
    for column, value in values.items():
        rows[column] = value
    rows.to_csv(path, index=False)


def test_the_error_names_a_missing_column_or_an_invalid_value(tmp_path: Path) -> None:
    folder = write_course_files(tmp_path)

    def message() -> str:
        with pytest.raises(NetworkError) as raised:
            course_files.load_network(UNREACHABLE, folder)
        assert "\n" not in str(raised.value)
        return str(raised.value).removeprefix(f"{folder}/")

    set_columns(folder / course_files.EVENING, target="2")
    assert message() == "views_evening.csv.gz: 'target' must be 0 or 1, not 2"
    set_columns(folder / course_files.HISTORY, timestamp="yesterday\nor so")
    assert message().startswith("history_users.csv.gz: 'timestamp' must be a time, UTC: ")
    pd.read_csv(folder / course_files.POSTS).drop(columns="topic").to_csv(
        folder / course_files.POSTS, index=False
    )
    assert message() == "posts.csv.gz lacks the column 'topic'"
    set_columns(folder / course_files.USERS, age="young")
    assert message().startswith("users.csv.gz: 'age' must be a whole number or nothing: ")
    set_columns(folder / course_files.USERS, age="20", user_id="7")
    assert message() == "users.csv.gz has 1 ids more than once, first 7"
