"""A variant that learns: choose its recipe, evaluate it on the holdout, train it on everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch.evaluation.choose_recipe import choose_recipe
from batch.evaluation.holdout import HoldoutEvaluation, evaluate_holdout
from batch.evaluation.recipe_choice import RecipeChoice
from batch.progress import Stages
from batch.training.dataset import Dataset, Window
from batch.training.fit import fit
from batch.training.model import Model
from batch.training.parameters import load_parameters
from batch.training.recipe import Recipe
from batch.training.refresh_state import RefreshState
from batch.variants import Variant
from contract.settings import Settings

HOLDOUT_MODEL = "judged"
"""Subfolder of a run's folder with the model that was fit before the holdout."""


@dataclass(frozen=True)
class Learner:
    """A variant with the parameters that it learns with.

    Attributes
    ----------
    tuned
        Parameters that `tune` keeps for the variant; they override the defaults.
    folder
        The run's folder for models.
    """

    variant: Variant
    settings: Settings
    tuned: Mapping[str, Any]
    folder: Path

    @classmethod
    def create(cls, variant: Variant, settings: Settings, run_id: str) -> Learner:
        """Read the variant's tuned parameters.

        Raises
        ------
        ParametersError
            The file of tuned parameters cannot be used.
        """
        folder = Path(settings.night.model_dir) / run_id
        return cls(variant, settings, load_parameters(variant.name, settings), folder)

    def choose_recipe(self, dataset: Dataset, stages: Stages) -> RecipeChoice:
        """Choose what the variant learns, on data before the holdout."""
        with stages.stage("choose", "recipes") as row:
            choice = choose_recipe(self.variant, dataset, self.settings, self.tuned)
            row |= {"recipes": len(choice.candidates), "users": choice.users}
        return choice

    def evaluate(self, dataset: Dataset, recipe: Recipe, stages: Stages) -> HoldoutEvaluation:
        """Fit before the holdout, evaluate on the holdout, and save the model for later nights."""
        with stages.stage("fit", "windows") as row:
            model = self._fit(dataset, dataset.training, recipe)
            row |= {"windows": len(dataset.training)}
        with stages.stage("evaluate", "rows") as row:
            holdout = evaluate_holdout(model, dataset, self.settings.night.threads)
            holdout.metrics.warn_if_insufficient()
            row |= {"rows": holdout.metrics.rows}
        model.save(self.folder / HOLDOUT_MODEL, dataset.network)
        return holdout

    def train(self, dataset: Dataset, recipe: Recipe, stages: Stages) -> Model:
        """Fit on everything up to the cutoff; save the model and the state that refreshes need."""
        with stages.stage("refit", "windows") as row:
            model = self._fit(dataset, dataset.windows, recipe)
            row |= {"windows": len(dataset.windows)}
        model.save(self.folder, dataset.network)
        with stages.stage("refresh_state", "users") as row:
            RefreshState.from_night(model, dataset.network, dataset.now).save(self.folder)
            row |= {"users": len(dataset.network.users)}
        return model

    def _fit(self, dataset: Dataset, windows: Sequence[Window], recipe: Recipe) -> Model:
        settings, tuned = self.settings, self.tuned
        return fit(self.variant, dataset, windows=windows, recipe=recipe, settings=settings, tuned=tuned)
