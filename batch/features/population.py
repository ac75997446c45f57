"""What the features of one user take from all users of the network, as of a cutoff.

A night computes it from everybody. A refresh, which counts for a few users
only, takes over what the night computed.
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
    """What all users make of the groups of posts of one grouping.

    Attributes
    ----------
    share
        (groups,) of all likes, the part that falls on each group.
    like_rate
        (groups,) mean like rate.
    lift
        (values of attributes, groups) float32 from `cohort_lift`; None for a variant without cohorts.
    """

    share: Float64s
    like_rate: Float64s
    lift: Float32s | None


@dataclass(frozen=True)
class Population:
    """Means over all users.

    Attributes
    ----------
    like_rate
        Mean like rate of the users.
    cohorts
        How the values of the users' attributes are numbered.
    groups
        Grouping -> what all users make of its groups.
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
            kept = {"share": group.share, "like_rate": group.like_rate, "lift": group.lift}
            arrays |= {f"population_{name}_{key}": value for key, value in kept.items() if value is not None}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Any) -> Population:
        """Read what `to_arrays` returned; raises KeyError or ValueError for anything else."""
        about = json.loads(str(arrays["population"]))
        groupings = about.pop("groupings")
        groups = {}
        for name in groupings:
            groups[name] = GroupPopulation(
                arrays[f"population_{name}_share"],
                arrays[f"population_{name}_like_rate"],
                arrays.get(f"population_{name}_lift"),
            )
        return cls(float(arrays["population_like_rate"]), Cohorts(**about), groups)


def compute_population(variant: Variant, network: Network, history: History) -> Population:
    """Compute the means of a network as of `history.cutoff`."""
    values = None
    if variant.with_people:
        values = one_hot(network.cohorts.rows(network.users), network.cohorts.count)
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
    """Return likes / views over the rows that can tell it; 0 where none can."""
    likes, views = np.asarray(likes, np.float64), np.asarray(views, np.float64)
    usable = (views > 0) & (likes <= views)
    return float(likes[usable].sum() / views[usable].sum()) if usable.any() else 0.0
