"""Tags that mark entities word by word: the ways they are written, and BIO, which they all become.

    bio     B- begins an entity, I- goes on with it, O is outside of one (also called IOB2)
    iob1    I- for every word of an entity; B- only where it touches the one before, of its own type
    bioes   E- ends an entity of several words, S- is one of a single word (BILOU: L- and U-)

Ramshaw & Marcus, Text Chunking using Transformation-Based Learning, 1995 (iob1); Ratinov & Roth,
Design Challenges and Misconceptions in Named Entity Recognition, CoNLL 2009 (bioes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from plugin_trainer.errors import DataError

OUTSIDE = "O"
ENDINGS = {"E": "I", "L": "I", "S": "B", "U": "B"}
"""The prefixes that only bioes has, and what they are in BIO."""
CLOSING = set(ENDINGS)
"""After these the entity is over: E- and L- end one, S- and U- are one."""
PREFIXES = {"B", "I", *ENDINGS}


@dataclass(frozen=True, slots=True)
class Sentence:
    """The words of a sentence and their tags, as they are written.

    places  where each word stands, for the messages: "train.conll:17"
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    places: tuple[str, ...]


def split_tag(tag: str, *, at: str) -> tuple[str, str]:
    """Prefix and type: ("B", "person"), or ("O", ""). Raises NoTag."""
    prefix, dash, kind = tag.partition("-")
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if dash and kind and prefix in PREFIXES:
        return prefix, kind
    raise NoTag(
        f"{at}: {tag!r} is no tag of an entity",
        hint="a tag is O, or B- or I- and the type of the entity, such as B-person",
    )


def scheme_of(sentences: Iterable[Sequence[str]]) -> str:
    """How the tags of a whole file are written, told by the tags that only one scheme has.

    Tags that break every scheme are taken for BIO, whose check then names them.
    """
    begins_with_i = begins_with_b = False
    for tags in sentences:
        before = OUTSIDE
        for tag in tags:
            prefix, _, kind = tag.partition("-")
            if prefix in ENDINGS and kind:
                return "bioes"
            touches = before.partition("-")[2] == kind
            begins_with_i |= prefix == "I" and not touches
            begins_with_b |= prefix == "B" and not touches
            before = tag
    return "iob1" if begins_with_i and not begins_with_b else "bio"


class NoTag(DataError):
    """What stands in the place of a tag is none in any scheme."""


def to_bio(
    sentence: Sentence, *, scheme: str, table: str
) -> tuple[tuple[str, ...], list[DataError]]:
    """The BIO tag of each word, and what is wrong with the tags as they are written.

    scheme  "bio", "iob1" or "bioes"
    table   the settings table of the task, for the messages

    A tag that goes on with an entity that nothing began begins one, as seqeval and conlleval read
    it; what is no tag is outside.
    """
    bio: list[str] = []
    problems: list[DataError] = []
    before = (OUTSIDE, "")
    for position, tag in enumerate(sentence.tags):
        at = sentence.places[position]
        try:
            now = split_tag(tag, at=at)
        except NoTag as error:
            problems.append(error)
            now = (OUTSIDE, "")
        else:
            if problem := _problem(before, now, scheme=scheme):
                after = sentence.tags[position - 1] if position else "the beginning of the sentence"
                problems.append(
                    broken_tag(f"{at}: {tag} after {after}", problem, scheme=scheme, table=table)
                )
        bio.append(_as_bio(before, now))
        before = now
    if scheme == "bioes" and before[0] in ("B", "I"):
        last = f"{sentence.places[-1]}: {sentence.tags[-1]} at the end of the sentence"
        problem = f"an entity ends with E-{before[1]}, or is S-{before[1]}"
        problems.append(broken_tag(last, problem, scheme=scheme, table=table))
    return tuple(bio), problems


def broken_tag(what: str, problem: str, *, scheme: str, table: str) -> DataError:
    """The error for a tag that the scheme does not allow where it stands."""
    others = [f'"{other}"' for other in ("bio", "iob1", "bioes") if other != scheme]
    return DataError(
        f"{what} breaks {scheme.upper()}: {problem}",
        hint=(
            f"correct the tags, or, if they are written otherwise: {table}.scheme = "
            f"{' or '.join(others)}",
            f'to read them as they were probably meant: {table}.broken_tags = "repair"',
        ),
    )


def _problem(before: tuple[str, str], now: tuple[str, str], *, scheme: str) -> str:
    """Why a tag cannot follow another in a scheme; empty if it can."""
    (left, left_kind), (prefix, kind) = before, now
    if scheme != "bioes" and prefix in ENDINGS:
        return f"it knows no {prefix}-"
    if scheme == "iob1":
        return ""
    open_before = left in ("B", "I") and left_kind == kind
    if prefix == "I" or ENDINGS.get(prefix) == "I":
        return "" if open_before else f"an entity begins with B-{kind}"
    if scheme == "bioes" and left in ("B", "I"):
        return f"an entity of {left_kind} is not ended yet"
    return ""


def _as_bio(before: tuple[str, str], now: tuple[str, str]) -> str:
    (left, left_kind), (prefix, kind) = before, now
    if prefix == OUTSIDE:
        return OUTSIDE
    goes_on = ENDINGS.get(prefix, prefix) == "I" and left != OUTSIDE and left_kind == kind
    return f"{'I' if goes_on and left not in CLOSING else 'B'}-{kind}"


def tag_names(types: Iterable[str]) -> tuple[str, ...]:
    """The BIO tags of some types of entities, in the order of their numbers: O is 0."""
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in ("B", "I")))
