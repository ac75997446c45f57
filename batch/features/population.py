"""Statistics of all users of the network that the features of a user depend on, as of a cutoff.

A night computes them from all users. A refresh counts interactions of some users
only, and uses the statistics of the night.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from batch.arrays import Float32s, Float64s
from batch.loading.cohorts import Cohorts, cohort_lift, one_hot
from batch.loading.history import History
from batch.loading.network import Network
from batch.variants import Variant


@dataclass(frozen=True)
class GroupPopulation:
    """Statistics of the groups of posts of one grouping, over all users.

    Attributes
    ----------
    share
        (groups,) share of each group in all likes.
    like_rate
        (groups,) mean like rate.
    lift
        (attribute values, groups) float32 from `cohort_lift`; None for a variant without cohorts.
    """

    share: Float64s
    like_rate: Float64s
    lift: Float32s | None


@dataclass(frozen=True)
class Population:
    """Statistics over all users.

    Attributes
    ----------
    like_rate
        Mean like rate of the users.
    cohorts
        The indices of the values of the users' attributes.
    groups
        Grouping -> statistics of its groups.
    """

    like_rate: float
    cohorts: Cohorts
    groups: dict[str, GroupPopulation]

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return named arrays for an .npz file."""
        cohorts = json.dumps(vars(self.cohorts) | {"groupings": [*self.groups]})
        arrays: dict[str, npt.NDArray[Any]] = {
            "population": np.array(cohorts),
            "population_like_rate": np.array(self.like_rate),
        }
        for name, group in self.groups.items():
            named = vars(group).items()
            arrays |= {f"population_{name}_{key}": value for key, value in named if value is not None}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Any) -> Population:
        """Read what `to_arrays` returned; other input raises KeyError or ValueError."""
        cohorts = json.loads(str(arrays["population"]))
        groupings = cohorts.pop("groupings")
        groups = {}
        for name in groupings:
            groups[name] = GroupPopulation(
                share=arrays[f"population_{name}_share"],
                like_rate=arrays[f"population_{name}_like_rate"],
                lift=arrays.get(f"population_{name}_lift"),
            )
        return cls(float(arrays["population_like_rate"]), Cohorts(**cohorts), groups)


def compute_population(variant: Variant, network: Network, history: History) -> Population:
    """Compute the statistics of a network as of `history.cutoff`."""
    values = None
    if variant.with_cohorts:
        values = one_hot(network.cohorts.encode(network.users), network.cohorts.count)
    groups = {}
    for name in variant.groupings:
        likes, views = history.likes_of_group[name], history.views_of_group[name]
        likes_of_group = likes.sum(axis=0, dtype=np.float64)
        lift = None
        if values is not None:
            lift = cohort_lift(values, history.likes, history.groupings.of_post(name), likes.shape[1])
        groups[name] = GroupPopulation(
            share=likes_of_group / max(likes_of_group.sum(), 1.0),
            like_rate=np.array(
                [mean_like_rate(likes[:, group], views[:, group]) for group in range(likes.shape[1])]
            ),
            lift=lift,
        )
    counts = history.user_counts
    return Population(mean_like_rate(counts["likes"], counts["views"]), network.cohorts, groups)


def mean_like_rate(likes: Any, views: Any) -> float:
    """Return likes / views, over the rows with views and no more likes than views; 0 without such rows."""
    likes, views = np.asarray(likes, np.float64), np.asarray(views, np.float64)
    usable = (views > 0) & (likes <= views)
    return float(likes[usable].sum() / views[usable].sum()) if usable.any() else 0.0
