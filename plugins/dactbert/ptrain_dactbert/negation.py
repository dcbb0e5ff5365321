"""A generated task whose texts have a known difficulty: how many negations are nested in them.

"the film is hardly not good": the film is good at first, and the words before the adjective act on
that, the nearest first:

    not      turns good and bad round, and leaves plain as it is
    hardly   takes one step down: good, plain, bad, and from bad round to good
    barely   takes one step up: bad, plain, good, and from good round to bad

So the film is bad ("not"), then good ("hardly"): positive. The order of the words matters, so that
counting them will not do; and each of them matters, so that a text with n of them takes n steps.
There is no noise: who follows the rules is always right.
"""

from __future__ import annotations

import random
import zlib

from plugin_trainer.data.texts.reading import Row

NAME = "negation"
LABELS = ("negative", "neutral", "positive")
HARDEST = 4

SUBJECTS = (
    *("film", "story", "acting", "music", "script", "ending", "camera", "dialogue"),
    *("plot", "cast", "humour", "score", "editing", "pace", "opening", "lighting"),
)
VERDICTS = {
    "negative": ("bad", "dull", "poor", "boring", "clumsy", "awful", "stupid", "tedious"),
    "neutral": ("plain", "ordinary", "average", "usual", "middling", "common", "fair", "passable"),
    "positive": ("good", "great", "clever", "charming", "funny", "warm", "honest", "moving"),
}
NEGATIONS = {
    "not": {"positive": "negative", "neutral": "neutral", "negative": "positive"},
    "hardly": {"positive": "neutral", "neutral": "negative", "negative": "positive"},
    "barely": {"positive": "negative", "neutral": "positive", "negative": "neutral"},
}
HELD_OUT_SHARE = 8
"""One distinct text in so many belongs to each held-out part, and is never trained on."""


def rows(count: int, *, split: str, seed: int) -> list[Row]:
    """`count` rows of a split, the difficulties in turn, so that each has equally many.

    Which split a text belongs to is a function of the text alone: no text is in two of them,
    whatever the seeds.
    """
    generator = random.Random(f"{NAME} {split} {seed}")
    drawn: list[Row] = []
    while len(drawn) < count:
        difficulty = len(drawn) % (HARDEST + 1)
        text, label = compose(generator, difficulty=difficulty)
        if part(text) == split:
            drawn.append(Row(text, label, line=len(drawn) + 1, difficulty=difficulty))
    return drawn


def compose(generator: random.Random, *, difficulty: int) -> tuple[str, str]:
    """A text with so many negations, and its label."""
    verdict = generator.choice(LABELS)
    words = [generator.choice(VERDICTS[verdict])]
    for _ in range(difficulty):
        negation = generator.choice(tuple(NEGATIONS))
        words.insert(0, negation)
        verdict = NEGATIONS[negation][verdict]
    return " ".join(("the", generator.choice(SUBJECTS), "is", *words)), verdict


def part(text: str) -> str:
    """The split that a text belongs to."""
    # Not hash(): it differs from one process to the next.
    share = zlib.crc32(text.encode()) % HELD_OUT_SHARE
    return {0: "validation", 1: "test"}.get(share, "train")
