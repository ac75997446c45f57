"""Features in words, and the parts of a score."""

from __future__ import annotations

import math
from typing import Any

import pytest

from batch.inspection.feature_words import (
    AFFINITIES,
    BASE,
    FACTORS,
    MAX_PARTS,
    NAMED,
    ScorePart,
    describe_value,
    name_feature,
    split_score,
)
from batch.reports.bars import MAX_CHARACTERS
from console.content.explanations import name_reasons


@pytest.mark.parametrize(
    ("name", "kind", "value", "words", "shown"),
    [
        ("user_likes", "user", math.log1p(1234), "likes by the user", "1,234"),
        ("user_like_rate", "user", 0.153, "likes per view of the user", "15 %"),
        ("post_like_rate", "post", 0.0153, "likes per view of the post", "1.5 %"),
        ("user_days_since", "user", 3.46, "user's last action", "3.5 days ago"),
        ("post_age_days", "post", 1200.0, "age of the post", "1,200 days"),
        ("user_exp_group", "user", "3", "user's exp group", "3"),
        ("user_age", "user", 27.0, "user's age", "27"),
        ("post_topic", "post", None, "post's topic", "unknown"),
        ("topic_share", "affinity", 1.0, "this topic in their likes", "100 %"),
        ("cluster_people", "affinity", -0.12345, "similar users, such texts", "-0.1235"),
        ("post_embedding_7", "post", 0.5, "what the text means", "0.5"),
    ],
)
def test_features_and_values_are_told_in_words(
    name: str, kind: str, value: float | str | None, words: str, shown: str
) -> None:
    assert name_feature(name, kind) == words
    assert describe_value(name, kind, value) == shown


def test_labels_of_bars_are_not_cut() -> None:
    names = [(name, name.partition("_")[0]) for name in NAMED]
    names += [(f"{group}_{measure}", "affinity") for group in ("topic", "cluster") for measure in AFFINITIES]
    for name, kind in names:
        value = math.log1p(9_999) if NAMED.get(name, ("", ""))[1] == "count" else 0.999
        label = f"{name_feature(name, kind)}: {describe_value(name, kind, value)}"
        assert len(label) <= MAX_CHARACTERS["short"] - len("+0.1234"), label


def test_parts_add_up_to_the_score_and_the_largest_come_first() -> None:
    contributions = [
        {
            "feature": f"user_column_{number}",
            "kind": "user",
            "value": 1.0,
            "contribution": (-1) ** number / number,
        }
        for number in range(1, 30)
    ]
    contributions += [
        {"feature": f"post_text_{number}", "kind": "post", "value": 1.0, "contribution": 0.25}
        for number in range(8)
    ]
    total = sum(part["contribution"] for part in contributions)
    explanation = {"contributions": contributions, "dot_product": -0.75, "base_value": -2.0}
    parts = split_score(explanation)
    assert sum(part.adds for part in parts) == pytest.approx(total - 2.75)
    assert [part.words for part in parts[:3]] == ["which words the text has", "user's column 1", FACTORS]
    sizes = [abs(part.adds) for part in parts[:MAX_PARTS]]
    assert sizes == sorted(sizes, reverse=True)
    assert [part.words for part in parts[MAX_PARTS:]] == ["19 further features", BASE]
    alone = split_score({"contributions": contributions[:1], "dot_product": None, "base_value": 0.5})
    assert [part.words for part in alone] == ["user's column 1", BASE]


def test_reasons_are_what_raises_a_post_above_the_mean_of_the_page() -> None:
    def explain(age: float, likes: float, dot: float) -> dict[str, Any]:
        rows = [("user_age", "user", 30.0, age), ("post_likes", "post", math.log1p(9), likes)]
        contributions = [
            {"feature": name, "kind": kind, "value": value, "contribution": adds}
            for name, kind, value, adds in rows
        ]
        return {"contributions": contributions, "dot_product": dot, "base_value": -1.0}

    answers = {"a": explain(3.0, 0.25, -2.0), "b": explain(3.0, 0.75, -1.0), "c": {"error": "gone"}}
    assert name_reasons(answers) == {
        "a": [],
        "b": [ScorePart(FACTORS, "", 0.5), ScorePart("likes of the post", "9", 0.25)],
    }
    assert name_reasons({"a": answers["a"]}) == {"a": []}
