"""Posts while the engine is away: taken for a time of grace, then sent back, so that moles keep them."""

from collections.abc import Callable

from cluster_dash_server.ingest import Answer, Ingest, Post, refused

RETRY_SECONDS = 10


class Graceful:
    """Takes posts as `Ingest` does, while there is nothing against it.

    Args:
        ingest: what takes them.
        refusal: says why none is taken now; None: they are.
    """

    def __init__(self, ingest: Ingest, refusal: Callable[[], str | None]) -> None:
        self.limits = ingest.limits
        self._ingest = ingest
        self._refusal = refusal

    def __call__(self, post: Post) -> Answer:
        """See `Ingest`."""
        why_not = self._refusal()
        return self._ingest(post) if why_not is None else refused(503, why_not, RETRY_SECONDS)

    def at_once(self, post: Post) -> Answer | None:
        """See `Ingest.at_once`."""
        why_not = self._refusal()
        return self._ingest.at_once(post) if why_not is None else refused(503, why_not, RETRY_SECONDS)

    def batch(self, post: Post) -> Answer:
        """See `Ingest.batch`."""
        why_not = self._refusal()
        return self._ingest.batch(post) if why_not is None else refused(503, why_not, RETRY_SECONDS)
