"""The pages, a module for each."""

from demo.network_app.pages import accounts, communities, feed, liked, likes, messages, posts, profiles

PAGES = tuple(
    module.blueprint for module in (accounts, feed, likes, posts, liked, communities, messages, profiles)
)
