from __future__ import annotations

import pytest

from batch.experiment.split import MAX_PINS, PinError, pin_user
from contract.experiment import CONTROL, TEST, Experiment


def test_not_everyone_can_be_pinned() -> None:
    split = Experiment("a", "b", 0, dict.fromkeys(map(str, range(MAX_PINS)), TEST))
    assert pin_user(split, 0, CONTROL).variant_of(0) == CONTROL
    with pytest.raises(PinError, match="1000 users are pinned") as caught:
        pin_user(split, MAX_PINS, TEST)
    assert caught.value.exit_code == 2
