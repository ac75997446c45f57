"""Load a network whose files have the columns of the three views.

| file | columns | loaded as |
|---|---|---|
| users | user_id; every further column is a feature | "user" |
| posts | post_id; optional the columns that the view may have; others are features | post |
| interactions | user_id, post_id, action (view, like, unlike), happened_at; others ignored | feed_action |

Each is one file in Parquet (.parquet), CSV with a header (.csv) or compressed
CSV (.csv.gz), in UTF-8. An empty field is null, and so is NaN. Times are in
ISO 8601, in UTC unless they have an offset. Features become boolean, bigint,
numeric, double precision or text, by the type that Arrow infers from the whole
file; dates, lists and other types are skipped with a warning.

Ids of users, and of posts, are whole numbers, uuids or text: whole numbers if
the file has numbers, or texts that are all whole numbers (7, but not 007); uuids
if all texts are uuids; else text. Interactions must name them by the same kind.

Users and posts are in memory as Arrow tables, interactions one batch at a time.
Interactions are read twice: all are checked first, then copied in file order.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from batch.loading.schema import OPTIONAL, TIMES, WHOLE, WORDS
from contract import columns
from contract.columns import LIKE_ACTION, UNLIKE_ACTION, VIEW_ACTION
from contract.ids import IdKind, IdKinds, parse_id
from demo import network
from demo.course_files import check_ids, parse_times
from demo.dates import count_shift_days
from demo.network import NetworkError, quote
from demo.real_network import find_file

logger = logging.getLogger(__name__)

INTERACTIONS = [columns.USER_ID, columns.POST_ID, columns.ACTION, columns.HAPPENED_AT]
ACTIONS = [VIEW_ACTION, LIKE_ACTION, UNLIKE_ACTION]
FEED_COLUMNS = [columns.USER_ID, columns.POST_ID, columns.ACTION, "time"]
"""Columns of the table feed_action, in the order of INTERACTIONS."""

SQL_TYPES = {WHOLE: "bigint", WORDS: "text", TIMES: "timestamptz"}
ARROW_TYPES = {
    "bigint": pa.int64(),
    "uuid": pa.string(),
    "text": pa.string(),
    "timestamptz": pa.timestamp("us", "UTC"),
    "double precision": pa.float64(),
}
DESCRIPTIONS = {
    "bigint": "a whole number",
    "uuid": "a uuid",
    "text": "text",
    "timestamptz": "a time such as 2013-07-31 00:12:44",
}
NUMBER = r"^(0|-?[1-9][0-9]{0,18}|-?[0-9]+\.[0-9]+)$"
"""A whole number as Postgres writes it; also a decimal number, which is then refused as an id."""
UUID = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
BATCH_ROWS = 1 << 18
BATCH_BYTES = 1 << 23
MAX_NAME_BYTES = 63
"""Postgres cuts longer names: https://www.postgresql.org/docs/current/limits.html."""


@dataclass(frozen=True)
class Relation:
    """Rows of a table and the SQL type of each column, in column order."""

    rows: pa.Table
    types: dict[str, str]

    @property
    def id_kind(self) -> IdKind:
        """Kind of the ids, which are the first column."""
        id_type = next(iter(self.types.values()))
        return IdKind.NUMBER if id_type == "bigint" else IdKind(id_type)

    def shift(self, days: int) -> Relation:
        """Return the rows with all times so many days later."""
        return replace(self, rows=_shift(self.rows, days))

    def create_table_ddl(self, table: str) -> str:
        """Return the CREATE TABLE statement; the first column is the primary key."""
        key, *others = (f"{quote(name)} {kind}" for name, kind in self.types.items())
        return f"CREATE TABLE {table} ({', '.join([f'{key} PRIMARY KEY', *others])})"


def load_network(database_url: str, folder: Path, until: datetime | None = None) -> int:
    """Replace the network in the database by that of the files in `folder`; return the shift of its dates.

    All files are checked before anything is dropped.

    Raises
    ------
    NetworkError
        If a file or column is missing, cannot be read, has no rows, or has
        invalid values; names file, column and value.
    """
    users = _read_relation(find_file(folder, columns.USERS), columns.USER_ID, {})
    author_type = network.id_type(users.id_kind)
    known = {name: SQL_TYPES.get(types, author_type) for name, types in OPTIONAL[columns.POSTS].items()}
    posts = _read_relation(find_file(folder, columns.POSTS), columns.POST_ID, known)
    interactions, kinds = find_file(folder, columns.INTERACTIONS), IdKinds(users.id_kind, posts.id_kind)
    actions, newest = _check_interactions(interactions, kinds)
    shift_days = count_shift_days(newest, until)
    posts = posts.shift(shift_days)
    with network.transaction(database_url) as connection:
        tables = posts.create_table_ddl("post"), users.create_table_ddl('"user"')
        network.create_tables(connection, *tables, kinds=kinds)
        network.copy_tables(connection, '"user"', list(users.types), iter([users.rows]))
        network.copy_tables(connection, "post", list(posts.types), iter([posts.rows]))
        rows = (_shift(batch, shift_days) for batch in read_interactions(interactions, kinds))
        network.copy_tables(connection, network.FEED_ACTION, FEED_COLUMNS, rows)
        network.create_views(
            connection,
            {name: name for name in posts.types},
            'CREATE VIEW recs.users AS SELECT * FROM "user"',
            kinds=kinds,
        )
    counts = (users.rows.num_rows, posts.rows.num_rows, actions[VIEW_ACTION], actions[LIKE_ACTION])
    logger.info("loaded %s users, %s posts, %s views and %s likes", *(f"{n:,}" for n in counts))
    if not actions[LIKE_ACTION]:
        logger.warning("no night can learn from this network: %s has no likes", interactions.name)
    return shift_days


def _read_relation(path: Path, id_column: str, known: dict[str, str]) -> Relation:
    """Read users or posts.

    Parameters
    ----------
    id_column
        Name of the column of ids, which must be present, not null and unique.
    known
        SQL type by column, of others than the id.
    """
    texts = [id_column, *(name for name, kind in known.items() if kind != "bigint")]
    rows = _read_csv(path, texts) if _is_csv(path) else _read_parquet(path)
    _check_names(path, rows.column_names, [id_column])
    _check_rows(path, rows.num_rows)
    known = {id_column: _find_id_type(_decode(rows[id_column]))} | known
    types = {field.name: known.get(field.name) or _sql_type(path, field) for field in rows.schema}
    types = {id_column: types.pop(id_column)} | types  # the first column becomes the primary key
    if columns.AUTHOR_ID in types and columns.AUTHOR_ID in known:
        _check_named_ids(path, columns.AUTHOR_ID, rows, known[columns.AUTHOR_ID])
    kept = {name: kind for name, kind in types.items() if kind is not None}
    for name in types.keys() - kept.keys():
        logger.warning(
            "%s: the column %r is skipped: %s is not a number, boolean or text",
            path, name, rows.schema.field(name).type,
        )  # fmt: skip
    table = pa.table({name: _cast(path, name, rows[name], kind) for name, kind in kept.items()})
    _check_no_null(path, id_column, table[id_column])
    check_ids(path, table[id_column].to_pandas())
    if kept[id_column] == "text":
        _check_text_ids(path, id_column, table[id_column])
    return Relation(table, kept)


def _decode(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without its dictionary."""
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values


def _find_id_type(ids: pa.ChunkedArray) -> str:
    """Return the SQL type of ids: that of whole numbers unless they are text and not all whole numbers."""
    if not _is_text(ids.type):
        return "bigint"
    for pattern, id_type in ((NUMBER, "bigint"), (UUID, "uuid")):
        if pc.all(pc.match_substring_regex(ids, pattern), min_count=0).as_py():
            return id_type
    return "text"


def _check_text_ids(path: Path, name: str, ids: pa.ChunkedArray) -> None:
    for each in ids.to_pylist():
        try:
            parse_id(each, IdKind.TEXT)
        except ValueError as error:
            raise NetworkError(f"{path}: {name!r} {error}, not {each!r:.80}") from None


def _sql_type(path: Path, field: pa.Field) -> str | None:
    """Return the SQL type of a feature column, None if models cannot use its type."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_uint64(kind) or pa.types.is_decimal(kind):
        return "numeric"
    if pa.types.is_integer(kind):
        return "bigint"
    if pa.types.is_floating(kind):
        return "double precision"
    if _is_text(kind) or pa.types.is_null(kind):
        return "text"
    if pa.types.is_binary(kind) and _is_csv(path):
        raise NetworkError(
            f"{path}: {field.name!r} is not text in UTF-8; convert the file, for example with iconv"
        )
    return None


def _shift(rows: pa.Table, days: int) -> pa.Table:
    """Return rows with all times so many days later."""
    for index, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            rows = rows.set_column(index, field.name, pc.add(rows[index], timedelta(days=days)))
    return rows


def _check_interactions(path: Path, kinds: IdKinds) -> tuple[Counter[str], datetime]:
    """Check all interactions; return the number of each action, and the time of the newest."""
    counts: Counter[str] = Counter()
    newest = datetime.min.replace(tzinfo=UTC)
    for batch in read_interactions(path, kinds):
        newest = max(newest, pc.max(batch[columns.HAPPENED_AT]).as_py() or newest)
        for entry in batch[columns.ACTION].value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
    _check_rows(path, counts.total())
    return counts, newest


def read_interactions(path: Path, kinds: IdKinds) -> Iterator[pa.Table]:
    """Yield the four columns of INTERACTIONS in checked batches; ids must be of the network's kinds."""
    types = [network.id_type(kinds.users), network.id_type(kinds.posts), "text", "timestamptz"]
    for batch in _csv_batches(path) if _is_csv(path) else _parquet_batches(path):
        for name, id_type in zip(INTERACTIONS[:2], types[:2], strict=True):
            _check_named_ids(path, name, batch, id_type)
        columns_and_types = zip(INTERACTIONS, types, strict=True)
        rows = pa.table({name: _cast(path, name, batch[name], kind) for name, kind in columns_and_types})
        for name in INTERACTIONS:
            _check_no_null(path, name, rows[name])
        valid = pc.is_in(rows[columns.ACTION], pa.array(ACTIONS))
        if not pc.all(valid, min_count=0).as_py():
            first = rows[columns.ACTION].filter(pc.invert(valid))[0]
            raise NetworkError(f"{path}: 'action' must be one of {', '.join(ACTIONS)}, not {first.as_py()!r}")
        yield rows


def _check_named_ids(path: Path, name: str, rows: pa.Table, id_type: str) -> None:
    """Raise NetworkError if users or posts have uuids or text as ids, and this column does not."""
    ids = _decode(rows[name])
    if id_type == "bigint" or ids.null_count == len(ids):
        return  # casting checks whole numbers
    if not _is_text(ids.type):
        raise NetworkError(f"{path}: {name!r} must be {DESCRIPTIONS[id_type]}; it is of type {ids.type}")
    if id_type == "uuid":
        valid = pc.match_substring_regex(ids, UUID)  # nulls are skipped
        if not pc.all(valid, min_count=0).as_py():
            first = ids.filter(pc.invert(valid))[0]
            raise NetworkError(f"{path}: {name!r} must be a uuid, not {first.as_py()!r:.80}")


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise _read_error(path, error) from error


def _parquet_batches(path: Path) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            _check_names(path, file.schema_arrow.names, INTERACTIONS)
            for batch in file.iter_batches(BATCH_ROWS, columns=INTERACTIONS):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise _read_error(path, error) from error


def _read_csv(path: Path, texts: list[str]) -> pa.Table:
    """Read a CSV file; the columns in `texts` are text, the types of others are inferred."""
    try:
        return pa.csv.read_csv(
            path,
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=_convert_options(dict.fromkeys(texts, pa.string())),
        )
    except (OSError, pa.ArrowException) as error:
        raise _read_error(path, error) from error


def _csv_batches(path: Path) -> Iterator[pa.Table]:
    texts = dict.fromkeys(INTERACTIONS, pa.string())
    blocks = pa.csv.ReadOptions(block_size=BATCH_BYTES)
    try:
        with pa.csv.open_csv(path) as head:
            _check_names(path, head.schema.names, INTERACTIONS)
        with pa.csv.open_csv(
            path, read_options=blocks, convert_options=_convert_options(texts, INTERACTIONS)
        ) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise _read_error(path, error) from error


def _convert_options(types: dict[str, pa.DataType], only: list[str] | None = None) -> pa.csv.ConvertOptions:
    return pa.csv.ConvertOptions(
        column_types=types,
        null_values=[""],
        strings_can_be_null=True,
        true_values=["true", "True", "TRUE"],
        false_values=["false", "False", "FALSE"],
        include_columns=only,
    )


def _cast(path: Path, name: str, values: pa.ChunkedArray, kind: str) -> pa.ChunkedArray:
    """Cast a column to the Arrow type that COPY needs for the SQL type `kind`."""
    values = _decode(values)
    try:
        if kind == "timestamptz":
            return _cast_times(values)
        if pa.types.is_floating(values.type):
            values = pc.if_else(pc.is_nan(values), None, values)
        elif kind == "bigint" and not pa.types.is_integer(values.type):
            values = values.cast(pa.string())  # casting a text rejects booleans and times
        values = values.cast(ARROW_TYPES.get(kind, values.type))
        return pc.utf8_lower(values) if kind == "uuid" else values
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise NetworkError(f"{path}: {name!r} must be {DESCRIPTIONS[kind]}: {_first_line(error)}") from error


def _cast_times(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert times to UTC, to the microsecond; without a zone they are in UTC."""
    target = ARROW_TYPES["timestamptz"]
    if pa.types.is_null(values.type):
        return values.cast(target)
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        if pa.types.is_date(values.type) or values.type.tz is None:
            values = values.cast(pa.timestamp("us"), safe=False)
        return values.cast(target, safe=False)
    if not _is_text(values.type):
        raise TypeError(f"it is of type {values.type}")
    return pa.chunked_array([pa.Array.from_pandas(parse_times(values.to_pandas()), type=target)])


def _check_names(path: Path, names: list[str], required: list[str]) -> None:
    for name in required:
        if name not in names:
            raise NetworkError(f"{path} lacks the column {name!r}; it has {', '.join(names)}")
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise NetworkError(f"{path} has the column {duplicates[0]!r} more than once")
    for name in names:
        if not name or len(name.encode()) > MAX_NAME_BYTES:
            raise NetworkError(f"{path}: the column name {name!r} must have 1 to {MAX_NAME_BYTES} bytes")


def _check_rows(path: Path, rows: int) -> None:
    if rows == 0:
        raise NetworkError(f"{path} has no rows")


def _check_no_null(path: Path, name: str, values: pa.ChunkedArray) -> None:
    if values.null_count:
        raise NetworkError(f"{path}: {name!r} is missing in {values.null_count:,} rows")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_csv(path: Path) -> bool:
    return path.suffix != ".parquet"


def _read_error(path: Path, error: Exception) -> NetworkError:
    return NetworkError(f"{path} cannot be read: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
