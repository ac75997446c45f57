"""Networks side by side: each has a name and a folder with its own servers, lists, models and reports.

| path in the demo's folder | content |
|---|---|
| . | the simulated network |
| networks/NAME | the network NAME |
| networks/NAME/network.json | which files were loaded there, for a list that starts no server |
| last-network | name of the network that was loaded or brought up last |
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from batch.formatting import table
from contract import columns
from contract.codec import decode_object, encode_object
from demo.processes import ROOT, DemoUsageError
from demo.servers import are_running, stop_all

SIMULATED = "simulated"
FOLDER_OF_ALL = ROOT / ".demo"
"""The demo's folder unless the user chooses another."""

FOLDER = "networks"
NETWORK_FILE = "network.json"
LAST_NETWORK_FILE = "last-network"

READ_SCHEMA_COMMENT = sa.text("SELECT obj_description(to_regnamespace(:schema), 'pg_namespace')")


@dataclass(frozen=True)
class LoadedNetwork:
    """A network whose load has completed.

    Attributes
    ----------
    source
        `simulated`, or the folder of its files.
    size
        Counts of users, posts and interactions, as text.
    at
        When the load completed, by this machine's clock, to the second.
    shift_days
        By how many days its times are later than in its files.
    """

    source: str
    size: str
    at: datetime
    shift_days: int = 0

    def to_json(self) -> str:
        """Return the JSON object that is stored as a comment and in network.json."""
        return encode_object(vars(self) | {"at": self.at.isoformat()})

    @classmethod
    def from_json(cls, text: str) -> LoadedNetwork | None:
        """Read the result of `to_json`; None if the text is something else."""
        try:
            values = decode_object(text)
            return cls(**values | {"at": datetime.fromisoformat(values["at"])})
        except (KeyError, TypeError, ValueError):
            return None


def read_loaded_network(engine: sa.Engine) -> LoadedNetwork | None:
    """Return the network in the database, None if no load has completed."""
    with engine.connect() as connection:
        comment = connection.scalar(READ_SCHEMA_COMMENT, {"schema": columns.SCHEMA})
    return None if comment is None else LoadedNetwork.from_json(comment)


def record_loaded_network(engine: sa.Engine, source: str, shift_days: int) -> LoadedNetwork:
    """Count the network's rows and record in the database that its load has completed."""
    with engine.begin() as connection:
        users, posts, rows = (
            connection.scalar(sa.text(f"SELECT count(*) FROM {columns.SCHEMA}.{relation}"))
            for relation in (columns.USERS, columns.POSTS, columns.INTERACTIONS)
        )
        size = f"{users:,} users, {posts:,} posts, {rows:,} interactions"
        network = LoadedNetwork(source, size, datetime.now(UTC).replace(microsecond=0), shift_days)
        connection.exec_driver_sql(f"COMMENT ON SCHEMA {columns.SCHEMA} IS %s", (network.to_json(),))
    return network


def name_source(files: Path | None) -> str:
    """Return the `source` of the network in a folder of files; None is the simulated one."""
    return SIMULATED if files is None else str(files.resolve())


@dataclass(frozen=True)
class NetworkFolder:
    """The folder of one network.

    Attributes
    ----------
    base
        The demo's folder, common to all networks.
    name
        The network's name.
    named_by_user
        Whether the user gave the name; otherwise it is the name of the folder of files.
    """

    base: Path
    name: str
    named_by_user: bool

    @property
    def path(self) -> Path:
        """Folder of the network's servers, models and reports."""
        return self.base if self.name == SIMULATED else self.base / FOLDER / self.name

    def command(self, name: str) -> str:
        """Return a command of the demo for this network, to be copied into a shell, after `python`."""
        folder = "" if self.base.resolve() == FOLDER_OF_ALL else f" --dir {shlex.quote(str(self.base))}"
        network = "" if self.name == SIMULATED else f" --name {shlex.quote(self.name)}"
        return f"-m demo{folder} {name}{network}"

    def read_network(self) -> LoadedNetwork | None:
        """Return what network.json says is loaded here, None if nothing is."""
        try:
            return LoadedNetwork.from_json((self.path / NETWORK_FILE).read_text())
        except FileNotFoundError:
            return None

    def record_use(self, network: LoadedNetwork) -> None:
        """Record what is loaded here, and that this network was used last."""
        (self.path / NETWORK_FILE).write_text(network.to_json())
        (self.base / LAST_NETWORK_FILE).write_text(self.name)

    def check_source(self, loaded: LoadedNetwork | None, source: str) -> None:
        """Raise DemoUsageError if a load would replace another folder's network without a name given."""
        if not self.named_by_user and loaded is not None and loaded.source != source:
            raise DemoUsageError(
                f"the network {self.name!r} is there already, from {loaded.source}; nothing was changed. "
                "Choose another name with --name (make demo NAME=...), or give this one to replace it"
            )


def choose_folder(base: Path, name: str | None, files: Path | None) -> NetworkFolder:
    """Return the folder into which to load: of the name given, else of the name of `files`, else simulated.

    Raises
    ------
    DemoUsageError
        If the name cannot be a folder's name.
    """
    default = SIMULATED if files is None else files.resolve().name
    chosen = default if name is None else name
    if not chosen or "/" in chosen or chosen.startswith("."):
        raise DemoUsageError(f"a network cannot be called {chosen!r}; choose a name with --name")
    return NetworkFolder(base, chosen, named_by_user=name is not None or files is None)


def find_folder(base: Path, name: str | None) -> NetworkFolder:
    """Return the folder of a network by name; None is the one loaded or brought up last.

    Raises
    ------
    DemoUsageError
        If no network has the name; lists the names there are.
    """
    folders = {folder.name: folder for folder in list_folders(base)}
    if name is None:
        last = _read_last_name(base)
        return folders.get(last, NetworkFolder(base, SIMULATED, named_by_user=False))
    if name not in folders:
        raise DemoUsageError(f"there is no network {name!r}; there are {', '.join(sorted(folders))}")
    return folders[name]


def list_folders(base: Path) -> list[NetworkFolder]:
    """Return the simulated network's folder, then all others by name."""
    names = sorted(path.name for path in (base / FOLDER).glob("*") if path.is_dir())
    return [NetworkFolder(base, name, named_by_user=False) for name in (SIMULATED, *names)]


def format_networks(base: Path) -> str:
    """Return the networks as a text table; starts nothing."""
    rows = []
    last = find_folder(base, None).name
    for folder in list_folders(base):
        network = folder.read_network()
        size, source, at = (network.size, network.source, network.at) if network else (None, None, None)
        servers = "running" if are_running(folder.path) else "stopped"
        rows.append([folder.name, "yes" if folder.name == last else None, size, at, servers, source])
    return table(["name", "last used", "size", "loaded", "servers", "from"], rows)


def stop_networks(base: Path, name: str | None) -> bool:
    """Stop the servers of one network, or of all; return whether anything ran."""
    folders = list_folders(base) if name is None else [find_folder(base, name)]
    stopped = [stop_all(folder.path) for folder in folders]
    return any(stopped)


def _read_last_name(base: Path) -> str:
    try:
        return (base / LAST_NETWORK_FILE).read_text()
    except OSError:
        return SIMULATED
