"""Numbers from a post's text: TF-IDF, reduced by truncated SVD."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from batch.features import TextFeatures
from batch.tables import Feature, Kind

COMPONENTS = 16
MOST_WORDS = 20_000
FEWEST_POSTS = 2


def text_features(texts: pd.Series, seed: int) -> TextFeatures:
    """Describe every post's text by a few numbers.

    Latent semantic analysis: singular vectors of the TF-IDF matrix (Deerwester
    et al., 1990). Texts do not change, so there is no cutoff here.

    Parameters
    ----------
    texts
        One text per post, null for a post without.

    Returns
    -------
    Columns `post_text_0`..., and (posts, columns) float32, NaN for a post
    without text. No columns where the texts share too few words.
    """
    has_text = (texts.notna() & (texts.astype(object).fillna("").str.strip() != "")).to_numpy(dtype=bool)
    nothing = TextFeatures.none(len(texts))
    if has_text.sum() <= COMPONENTS:
        return nothing
    vectorizer = TfidfVectorizer(
        max_features=MOST_WORDS, min_df=FEWEST_POSTS, sublinear_tf=True, dtype=np.float32
    )
    try:
        weights = vectorizer.fit_transform(texts[has_text])
    except ValueError:  # what scikit-learn raises when no word is left
        return nothing
    components = min(COMPONENTS, weights.shape[1] - 1)
    if components < 1:
        return nothing
    reduced = TruncatedSVD(components, random_state=seed).fit_transform(weights)
    values = np.full((len(texts), components), np.nan, dtype=np.float32)
    values[has_text] = reduced
    return TextFeatures(
        tuple(Feature(f"post_text_{place}", Kind.POST) for place in range(components)), values
    )
