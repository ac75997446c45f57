"""Networks side by side: each has a name and a folder with servers, lists, models and reports of its own.

| under the demo's folder | what |
|---|---|
| itself | the simulated network |
| networks/NAME | the network NAME |
| networks/NAME/network.json | what was loaded there, for a list without servers |
| last-network | name of the network that was loaded or brought up last |
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from batch.formatting import table
from demo.network import SIMULATED, Loaded, decode, encode
from demo.processes import DemoUsageError
from demo.servers import both_run, stop_everything

FOLDER = "networks"
LOADED = "network.json"
LAST = "last-network"


@dataclass(frozen=True)
class NetworkFolder:
    """Where one network is.

    Attributes
    ----------
    base
        The demo's folder, common to all networks.
    name
        The network's name.
    chosen
        Whether the user gave the name, rather than a folder of files that is called so.
    """

    base: Path
    name: str
    chosen: bool

    @property
    def path(self) -> Path:
        """Folder of the network's servers, models and reports."""
        return self.base if self.name == SIMULATED else self.base / FOLDER / self.name

    @property
    def option(self) -> str:
        """What follows `python -m demo exec` to name this network, with a space before it; may be empty."""
        return "" if self.name == SIMULATED else f" --name {shlex.quote(self.name)}"

    def loaded(self) -> Loaded | None:
        """Return what was loaded here, as noted; None if nothing was."""
        try:
            return decode((self.path / LOADED).read_text())
        except FileNotFoundError:
            return None

    def note(self, network: Loaded) -> None:
        """Note what is loaded here, and that it was used last."""
        (self.path / LOADED).write_text(encode(network))
        (self.base / LAST).write_text(self.name)

    def check_source(self, there: Loaded | None, source: str) -> None:
        """Raise DemoUsageError if another folder's network would be dropped and the name was not given."""
        if not self.chosen and there is not None and there.source != source:
            raise DemoUsageError(
                f"the network {self.name!r} is there already, from {there.source}; nothing was changed. "
                "Choose another name with --name (make demo NAME=...), or give this one to replace it"
            )


def folder_to_load(base: Path, name: str | None, files: Path | None) -> NetworkFolder:
    """Return where a network goes: under the name given, or called as its folder of files, or simulated.

    Raises
    ------
    DemoUsageError
        If that cannot be a folder's name.
    """
    own = SIMULATED if files is None else files.resolve().name
    chosen = own if name is None else name
    if not chosen or "/" in chosen or chosen.startswith("."):
        raise DemoUsageError(f"a network cannot be called {chosen!r}; choose a name with --name")
    return NetworkFolder(base, chosen, chosen=name is not None or files is None)


def folder_in_use(base: Path, name: str | None) -> NetworkFolder:
    """Return the network of a name, or the one that was loaded or brought up last.

    Raises
    ------
    DemoUsageError
        If there is none of the name; says which there are.
    """
    there = {home.name: home for home in network_folders(base)}
    if name is None:
        return there.get(_last(base), NetworkFolder(base, SIMULATED, chosen=False))
    if name not in there:
        raise DemoUsageError(f"there is no network {name!r}; there are {', '.join(sorted(there))}")
    return there[name]


def network_folders(base: Path) -> list[NetworkFolder]:
    """Return the simulated network's folder, then all others by name."""
    folders = sorted(path for path in (base / FOLDER).glob("*") if path.is_dir())
    return [NetworkFolder(base, name, chosen=False) for name in (SIMULATED, *(path.name for path in folders))]


def list_networks(base: Path) -> str:
    """Lay out what networks there are; nothing is started."""
    rows = []
    last = folder_in_use(base, None).name
    for home in network_folders(base):
        network = home.loaded()
        size, source, at = (network.size, network.source, network.at) if network else (None, None, None)
        servers = "running" if both_run(home.path) else "stopped"
        rows.append([home.name, "yes" if home.name == last else None, size, at, servers, source])
    return table(["name", "last used", "size", "loaded", "servers", "from"], rows)


def stop_networks(base: Path, name: str | None) -> bool:
    """Stop one network's servers, or everybody's; say whether anything ran."""
    chosen = network_folders(base) if name is None else [folder_in_use(base, name)]
    stopped = [stop_everything(home.path) for home in chosen]
    return any(stopped)


def _last(base: Path) -> str:
    try:
        return (base / LAST).read_text()
    except OSError:
        return SIMULATED
