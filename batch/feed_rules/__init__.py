"""Rules of a feed that change lists after the scores: topics, explored places, popular posts by segment."""

TOPICS, EXPLORE = "topics", "explore"
"""Keys of the costs of `TopicRule` and of `Exploration`."""

LIKES_FOUND = "likes_found"
"""Metric of the cost of a rule: later likes of a user among the first places of their list."""
