"""Whether the packages of a Dask cluster are installed: only those who use one need them."""

from __future__ import annotations

from importlib.util import find_spec

from contract.errors import OvernightError


def require_dask(user: str) -> None:
    """Check that the packages of a Dask cluster are there.

    Parameters
    ----------
    user
        What needs them, for the message.

    Raises
    ------
    OvernightError
        They are not installed.
    """
    if find_spec("distributed") is None:
        raise OvernightError(
            f"{user} needs the packages of requirements-dask.txt: pip install -r requirements-dask.txt"
        )
