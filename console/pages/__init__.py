"""The pages, a module each."""

from console.pages import data, doctor, experiment, home, jobs, log, posts, runs, search, users, why

PAGES = tuple(
    page.blueprint for page in (home, users, why, runs, experiment, posts, doctor, jobs, log, data, search)
)
