"""The model of one variant: it scores users and posts, and is saved to and loaded from a folder."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd

from batch.arrays import Bools, Float64s, Int32s, Int64s
from batch.features.build import NetworkTables, Population, build_tables, compute_population
from batch.features.factors import Factors, fit_factors
from batch.features.tables import ROWS_BATCH, ColumnEncoder, Feature, FeatureColumns, Kind
from batch.files import COLUMNS, FOREST, POSTS, USERS, encode_user_ids, read_forest, write_atomically
from batch.ids import pack_ids, rows_of_ids, unpack_ids
from batch.loading.cohorts import Groupings
from batch.loading.examples import Examples
from batch.loading.history import History
from batch.loading.model_columns import KINDS, TYPES, check_kinds
from batch.loading.network import Network
from batch.scoring.score import CompiledModel, compile_model
from batch.training.parameters import RECIPES, Recipe
from batch.variants import MODELS, Variant
from contract.columns import TOPIC
from contract.errors import ModelError


@dataclass(frozen=True)
class Model:
    """score(user, post) = dot(factors) + forest(features); `recipe.score_meaning` says what a score is.

    Attributes
    ----------
    text
        Columns of the posts' texts, in the order of the network's posts.
    groupings
        The groups of posts that affinity features use, in the same order.
    log_odds
        Slope and intercept that turn the factors' dot product into log-odds;
        None if the variant has no factors.
    """

    variant: Variant
    booster: lgb.Booster
    users: ColumnEncoder
    posts: ColumnEncoder
    text: FeatureColumns
    groupings: Groupings
    log_odds: tuple[float, float] | None
    seed: int
    recipe: Recipe

    def tables(
        self, network: Network, history: History, population: Population | None = None
    ) -> NetworkTables:
        """Return the features as of `history.cutoff`, encoded as in training.

        Parameters
        ----------
        population
            Of the whole network, if `network` and `history` have only a part of its users.

        Raises
        ------
        ModelError
            The model was trained on other features, by another release.
        """
        if population is None:
            population = compute_population(self.variant, network, history)
        tables = build_tables(
            self.variant, network, history, population, users=self.users, posts=self.posts, text=self.text
        )
        if self.booster.feature_name() != feature_names(tables.columns):
            raise ModelError("the model was trained on other features; run the night again")
        return tables

    def factors(self, network: Network, history: History) -> Factors | None:
        """Return the factors as of `history.cutoff` in log-odds."""
        if self.log_odds is None:
            return None
        factors = fit_factors(network, history, self.seed, self.recipe.factor_negatives)
        return factors.as_log_odds(*self.log_odds)

    def compile(self, network: Network, history: History, blocked: Int64s) -> CompiledModel:
        """Compile the model for the network's posts, to score its users as of `history.cutoff`.

        Parameters
        ----------
        blocked
            Rows of posts to exclude from all lists.

        Raises
        ------
        ModelError
            As in `tables`, or the model cannot be scored exactly.
        """
        tables, factors = self.tables(network, history), self.factors(network, history)
        return compile_model(self.booster, tables, factors, history.left_out, blocked)

    def scores(self, network: Network, history: History, rows: Examples, threads: int) -> Float64s:
        """Score rows by LightGBM itself, with features as of `history.cutoff`: (rows,)."""
        if len(rows) == 0:
            return np.empty(0)
        users, index = np.unique(rows.users, return_inverse=True)
        tables, factors = self.tables(network, history).of_users(users), self.factors(network, history)
        scores = np.empty(len(rows))
        for start in range(0, len(rows), ROWS_BATCH):
            batch = slice(start, start + ROWS_BATCH)
            matrix = tables.rows(index[batch], rows.posts[batch])
            scores[batch] = self.booster.predict(matrix, raw_score=True, num_threads=threads)
        return scores if factors is None else scores + factors.dot(rows.users, rows.posts)

    @property
    def digest(self) -> str:
        """SHA-256 of the forest (without its training parameters) and of the encoding of its columns."""
        forest = self.booster.model_to_string().partition("\nparameters:")[0]
        return hashlib.sha256((forest + _as_json(self._columns())).encode()).hexdigest()

    @property
    def learnt_nothing(self) -> bool:
        """Whether the forest has no split, so that it gives all posts the same score."""
        return not self.booster.feature_importance("split").any()

    def save(self, folder: Path, network: Network) -> None:
        """Write the forest in LightGBM's format, the encoding of its columns, and the data of each post.

        Each file is written atomically.

        Raises
        ------
        ModelError
            The disk is full or the folder cannot be written.
        """
        posts = io.BytesIO()
        ids = pack_ids(network.post_ids)
        np.savez(posts, post_ids=ids, text=self.text.values, groups=self.groupings.groups)
        forest = self.booster.model_to_string().encode()
        files = {
            FOREST: forest,
            COLUMNS: _as_json(
                {FOREST: hashlib.sha256(forest).hexdigest()}
                | self._columns()
                | {TYPES: network.types, KINDS: network.kinds.to_record()}
            ).encode(),
            POSTS: posts.getvalue(),
            USERS: encode_user_ids(network.user_ids),
        }
        try:
            for name, content in files.items():
                write_atomically(folder / name, content)
        except OSError as error:
            reason = f"{error.strerror}; free space or set OVERNIGHT_MODEL_DIR"
            raise ModelError(f"cannot save the model in {folder}: {reason}") from None

    def _columns(self) -> dict[str, Any]:
        return {
            "variant": self.variant.name,
            "users": self.users.categories,
            "posts": self.posts.categories,
            "text": [feature.name for feature in self.text.features],
            "groupings": dict(zip(self.groupings.names, self.groupings.sizes, strict=True)),
            "log_odds": self.log_odds,
            "seed": self.seed,
            "recipe": self.recipe.name,
        }


def load_model(folder: Path, network: Network) -> Model:
    """Load a saved model for the posts that the network has now.

    A post that is new to the model has NaN in its text columns. It is in the
    group of its topic, and in the last group of every other grouping.

    Raises
    ------
    ModelError
        A file is missing, or differs from what `save` wrote.
    """
    try:
        forest, columns = read_forest(folder)  # checked: LightGBM ends the process on a broken file
        if "recipe" not in columns:
            raise ModelError(f"the model in {folder} was saved by an earlier release; run the night again")
        check_kinds(folder, columns, network.kinds)
        booster = lgb.Booster(model_str=forest.decode())
        with np.load(folder / POSTS, allow_pickle=False) as saved:
            post_ids, text, groups = unpack_ids(saved["post_ids"]), saved["text"], saved["groups"]
        rows = rows_of_ids(post_ids, network.post_ids)
        known = (rows >= 0)[:, None]
        return Model(
            variant=MODELS[columns["variant"]],
            booster=booster,
            users=_encoder(Kind.USER, columns["users"]),
            posts=_encoder(Kind.POST, columns["posts"]),
            text=FeatureColumns(
                tuple(Feature(name, Kind.POST) for name in columns["text"]),
                np.where(known, text[rows], np.float32(np.nan)),
            ),
            groupings=_group_posts(network, columns["groupings"], known, groups[rows]),
            log_odds=tuple(columns["log_odds"]) if columns["log_odds"] else None,
            seed=columns["seed"],
            recipe=RECIPES[columns["recipe"]],
        )
    except OSError as error:
        reason = f"{error.strerror}; run the night again"
        raise ModelError(f"cannot read the model in {folder}: {reason}") from None
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile, lgb.basic.LightGBMError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the model in {folder} cannot be used: {reason}; run the night again") from None


def _group_posts(network: Network, sizes: dict[str, int], known: Bools, groups: Int32s) -> Groupings:
    """Return the model's groups of the known posts; new ones go to their topic's group or the last group."""
    groups = np.where(known, groups, np.array([*sizes.values()], np.int32) - 1)
    if TOPIC in sizes:
        of_post = pd.Series(groups[:, [*sizes].index(TOPIC)], network.posts.index)
        of_topic = of_post[known[:, 0]].groupby(network.posts[TOPIC]).first()
        by_topic = network.posts[TOPIC].map(of_topic).fillna(of_post)
        groups[:, [*sizes].index(TOPIC)] = np.where(known[:, 0], of_post, by_topic)
    return Groupings(tuple(sizes), groups, tuple(sizes.values()))


def feature_names(columns: tuple[Feature, ...]) -> list[str]:
    """Return column names that LightGBM accepts: without JSON characters, all distinct."""
    return [
        f"{index}_{re.sub(r'[^0-9A-Za-z_]+', '_', feature.name)}" for index, feature in enumerate(columns)
    ]


def _as_json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False)


def _encoder(kind: Kind, categories: dict[str, Any]) -> ColumnEncoder:
    known = {name: None if words is None else tuple(words) for name, words in categories.items()}
    return ColumnEncoder(kind, known)
