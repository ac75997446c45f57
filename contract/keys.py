"""Names of all Redis keys."""

from __future__ import annotations

from dataclasses import dataclass

from contract.ids import Id, encode_id


@dataclass(frozen=True)
class Keys:
    """Builds key names under one prefix (the setting `OVERNIGHT_KEY_PREFIX`)."""

    prefix: str = "recs"

    def live(self, variant: str) -> str:
        """String: id of the live run of a variant."""
        return f"{self.prefix}:live:{variant}"

    def user(self, run_id: str, user_id: Id) -> str:
        """String: the user's list in that run, see `codec.encode_list`."""
        return f"{self.prefix}:run:{run_id}:user:{encode_id(user_id)}"

    def post(self, run_id: str, post_id: Id) -> str:
        """String: the posts most similar to a post, same shape as a user's list."""
        return f"{self.prefix}:run:{run_id}:post:{encode_id(post_id)}"

    def popular(self, run_id: str) -> str:
        """String: the run's most liked posts, same shape as a user's list."""
        return f"{self.prefix}:run:{run_id}:popular"

    def segments(self, run_id: str) -> str:
        """Hash: value of the attribute `popular_by` of the manifest -> the popular list of its users."""
        return f"{self.prefix}:run:{run_id}:segments"

    def manifest(self, run_id: str) -> str:
        """String: JSON object that describes the run."""
        return f"{self.prefix}:run:{run_id}:manifest"

    def worker_check(self, map_id: str) -> str:
        """String: what a worker must find in its Redis before it gets tasks; exists while tasks run."""
        return f"{self.prefix}:run:{map_id}:check"

    def writing(self, run_id: str) -> str:
        """String: token of the stage that writes lists of the run; missing while none does."""
        return f"{self.prefix}:run:{run_id}:writing"

    def run_pattern(self, run_id: str) -> str:
        """SCAN pattern that matches every key of a run."""
        return f"{self.prefix}:run:{run_id}:*"

    @property
    def any_manifest_pattern(self) -> str:
        """SCAN pattern that matches the manifest of every run, and lists of ids that are `manifest`."""
        return f"{self.prefix}:run:*:manifest"

    @property
    def posts(self) -> str:
        """Hash: post id -> JSON `{"text", "topic"}`."""
        return f"{self.prefix}:posts"

    @property
    def experiment(self) -> str:
        """String: JSON object, see `experiment.Experiment`."""
        return f"{self.prefix}:experiment"

    @property
    def blocked(self) -> str:
        """Set: ids of blocked posts, which are never served."""
        return f"{self.prefix}:blocked"

    @property
    def gone(self) -> str:
        """Set: ids of posts that the network no longer has, which are not served."""
        return f"{self.prefix}:gone"

    @property
    def exposures(self) -> str:
        """Stream: who was served what, see `exposures.encode_exposures`; the batch moves it to Postgres."""
        return f"{self.prefix}:exposures"

    @property
    def help(self) -> str:
        """String: a description of these keys."""
        return f"{self.prefix}:help"


HELP_TEXT = """\
Overnight keeps recommendations here. Keys (prefix {prefix}):
  {prefix}:live:VARIANT             string  id of the run now served
  {prefix}:run:RUN_ID:user:USER_ID  string  JSON [[post_id, score], ...], best first
  {prefix}:run:RUN_ID:post:POST_ID  string  JSON [[post_id, similarity], ...]: posts most like it
  {prefix}:run:RUN_ID:popular       string  JSON [[post_id, likes], ...]: the fallback
  {prefix}:run:RUN_ID:segments      hash    value of an attribute of users -> popular list of these users
  {prefix}:run:RUN_ID:manifest      string  JSON: counts, cutoff, recipe, metrics, model digest, checksum
  {prefix}:run:RUN_ID:writing       string  there only while lists of the run are written: who may write
  {prefix}:run:MAP_ID:check         string  there only while workers run tasks: see OVERNIGHT_DASK
  {prefix}:posts                    hash    post id -> JSON {{"text", "topic"}}
  {prefix}:experiment               string  JSON: name, salt, percent in test, users pinned to a variant
  {prefix}:blocked                  set     post ids never to be served
  {prefix}:gone                     set     ids of posts that the network no longer has: not served
  {prefix}:exposures                stream  who was served what, until the batch moves it to Postgres
To see a user's list: GET {prefix}:live:control, then GET {prefix}:run:RUN_ID:user:USER_ID.
In keys, all of an id but letters, digits and ._~@- is percent-encoded: the user a/b is user:a%2Fb.
"""
