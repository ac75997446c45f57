from __future__ import annotations

from pathlib import Path

import pytest

from demo.networks import folder_in_use, folder_to_load
from demo.processes import DemoUsageError
from demo.real_network import Format, recognise


def test_the_first_network_is_recognised(real_network: Path) -> None:
    assert recognise(real_network) is Format.FIRST_NETWORK


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DemoUsageError, match="cannot be called"):
        folder_to_load(tmp_path, name, None)


def test_a_network_is_called_as_its_folder_and_the_simulated_one_lies_at_the_base(tmp_path: Path) -> None:
    assert folder_to_load(tmp_path, None, Path("/somewhere/films")).path == tmp_path / "networks" / "films"
    assert folder_to_load(tmp_path, None, None).path == tmp_path
    assert folder_in_use(tmp_path, None).path == tmp_path
    assert folder_to_load(tmp_path, "two words", None).option == " --name 'two words'"
