from __future__ import annotations

import pytest

from contract.score_kind import LIKES, SIMILARITY
from contract.settings import RECIPE_NAMES
from serving.routes import load_openapi

TOP_N = 12
DOCUMENT = load_openapi(TOP_N)


def test_the_document_names_every_kind_of_score() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    of_user, of_similar = (
        schemas[name]["properties"]["score_kind"]["enum"] for name in ("UserAnswer", "SimilarAnswer")
    )
    assert of_user == [*RECIPE_NAMES, LIKES, None]
    assert of_similar == [SIMILARITY, LIKES]


@pytest.mark.parametrize(("top_n", "default"), [(3, 3), (100, 5)])
def test_the_document_knows_the_longest_list(top_n: int, default: int) -> None:
    limit = load_openapi(top_n)["components"]["parameters"]["limit"]["schema"]
    assert (limit["maximum"], limit["default"]) == (top_n, default)
