"""That all processes load the same data, of which each then takes its part."""

from __future__ import annotations

from plugin_trainer.training.distributed.world import Failure, PeerFailed, World


def refuse_other_data(world: World, digest: str, *, role: str) -> None:
    """Raise PeerFailed in every process if not all have this digest. All must call it.

    Data that is shared out by its own code, too, would be divided twice, and nothing else would
    tell: the run would train on a part of it.
    """
    digests = world.gather(digest)
    for rank, other in enumerate(digests):
        if other != digests[0]:
            raise PeerFailed(
                Failure(
                    rank,
                    f"its {role} data is not that of process 0, and each takes its part of the "
                    "same",
                    (
                        "data that shares itself out among processes, by RANK or so, must not",
                        "what draws at random must do so from the streams of torch, numpy or "
                        "Python, which are seeded alike",
                    ),
                    2,
                )
            )
