from __future__ import annotations

import pytest

from batch.experiment.split import MOST_PINS, PinError, pinned
from contract.experiment import CONTROL, TEST, Experiment


def test_not_everyone_can_be_pinned() -> None:
    split = Experiment("a", "b", 0, dict.fromkeys(range(MOST_PINS), TEST))
    assert pinned(split, 0, CONTROL).variant_of(0) == CONTROL
    with pytest.raises(PinError, match="1000 users are pinned") as caught:
        pinned(split, MOST_PINS, TEST)
    assert caught.value.exit_code == 2
