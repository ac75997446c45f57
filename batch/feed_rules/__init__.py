"""Rules of a feed that change lists after the scores: topics, explored places, popular posts by segment."""
