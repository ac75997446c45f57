"""State of a night that its refreshes need in addition to the model: population means, and factors."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from batch.arrays import Float32s
from batch.features.build import Population, compute_population
from batch.features.factors import Factors, FactorState, fit_factor_state
from batch.files import REFRESH_STATE, encode_arrays, read_refresh_state, write_atomically
from batch.ids import Ids, pack_ids, rows_of_ids, unpack_ids
from batch.loading.history import History
from batch.loading.network import Network
from batch.training.model import Model
from contract.errors import ModelError
from contract.ids import Id


@dataclass(frozen=True)
class RefreshState:
    """The state of one night as of its cutoff.

    Attributes
    ----------
    population
        Means over all users.
    user_ids, post_ids
        (users,) and (posts,) ids of the night's rows, ascending.
    user_factors
        (users, factors) float32, as used for the night's scores; None for a variant without factors.
    factor_state
        What is needed to infer users' factors again; None for a variant without factors.
    """

    population: Population
    user_ids: Ids
    post_ids: Ids
    user_factors: Float32s | None
    factor_state: FactorState | None

    @classmethod
    def from_night(cls, model: Model, network: Network, history: History) -> RefreshState:
        """Compute the state as of `history.cutoff`."""
        factors = model.factors(network, history)
        return cls(
            population=compute_population(model.variant, network, history),
            user_ids=network.user_ids,
            post_ids=network.post_ids,
            user_factors=None if factors is None else factors.users,
            factor_state=None
            if factors is None
            else fit_factor_state(network, history, model.seed, model.recipe.factor_negatives),
        )

    def factors(self, model: Model, network: Network, history: History, changed: set[Id]) -> Factors | None:
        """Return factors in log-odds for a part of the users and the current posts.

        Parameters
        ----------
        network, history
            Of these users, and of the current posts.
        changed
            Ids of the users whose actions differ from those in the night. Their
            factors are inferred again, like those of users who are new since the night.

        Returns
        -------
        None for a variant without factors.
        """
        if self.factor_state is None or self.user_factors is None or model.log_odds is None:
            return None
        values = self.population.cohorts.encode(network.users)
        night_rows = rows_of_ids(self.post_ids, network.post_ids)
        inferred = self.factor_state.factors(history, values, night_rows, model.seed)
        factors = inferred.as_log_odds(*model.log_odds)
        rows = rows_of_ids(self.user_ids, network.user_ids)
        kept = (rows >= 0) & ~network.users.index.isin(changed)
        if kept.any():
            factors.users[kept] = self.user_factors[rows[kept]]
        return factors

    def save(self, folder: Path) -> None:
        """Write the state to one file in the run's folder.

        Raises
        ------
        ModelError
            The disk is full or the folder cannot be written.
        """
        ids = {"user_ids": pack_ids(self.user_ids), "post_ids": pack_ids(self.post_ids)}
        arrays = ids | self.population.to_arrays()
        if self.factor_state is not None and self.user_factors is not None:
            arrays |= {"user_factors": self.user_factors} | self.factor_state.to_arrays()
        try:
            write_atomically(folder / REFRESH_STATE, encode_arrays(arrays))
        except OSError as error:
            reason = f"{error.strerror}; free space or set OVERNIGHT_MODEL_DIR"
            raise ModelError(f"cannot save the model in {folder}: {reason}") from None


def load_refresh_state(folder: Path) -> RefreshState:
    """Load a saved state.

    Raises
    ------
    ModelError
        The file is missing or is not what `save` wrote.
    """
    try:
        arrays = read_refresh_state(folder / REFRESH_STATE)
        with_factors = "user_factors" in arrays
        return RefreshState(
            population=Population.from_arrays(arrays),
            user_ids=unpack_ids(arrays["user_ids"]),
            post_ids=unpack_ids(arrays["post_ids"]),
            user_factors=arrays["user_factors"] if with_factors else None,
            factor_state=FactorState.from_arrays(arrays) if with_factors else None,
        )
    except OSError as error:
        reason = f"{error.strerror}; run the night again"
        raise ModelError(f"cannot read the model in {folder}: {reason}") from None
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"the model in {folder} cannot be used: {REFRESH_STATE}: {reason}; run the night again"
        ) from None
