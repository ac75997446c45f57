"""The decorator of functions that Numba compiles, and the folder that keeps their machine code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """Compile a function to run without the GIL, and cache its machine code on disk.

    If no cache folder is writable (see Numba's NUMBA_CACHE_DIR), each process
    compiles the function again.
    """
    try:
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:
        return cast(Function, numba.njit(nogil=True)(function))


def _cache_folder() -> str:
    """Return a cache folder that depends on the source of the scorer.

    Numba recompiles a function when its own file changes. It does not notice a
    change of a function in another file that the first one calls, such as
    those of batch/scoring/simd.py.
    """
    here = Path(__file__)
    sources = b"".join(path.read_bytes() for path in [here, *sorted((here.parent / "scoring").glob("*.py"))])
    folder = Path(_numba_settings.CACHE_DIR or here.parent / "__pycache__")
    return str(folder / f"scorer-{hashlib.sha256(sources).hexdigest()[:16]}")


_numba_settings: Any = numba.config
_numba_settings.CACHE_DIR = _cache_folder()
