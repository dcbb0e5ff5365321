"""Three small generated tasks that share their words: sentiment, entities, relations.

They are made so that words alone do not tell, and so that each can be learned in a minute by a
small encoder from scratch:

    sentiment  "the staff is rude but the soup is not bad": the last clause decides, and "not" and
               "never" turn an adjective round
    entities   people, companies and places, of one word or two. Some words are the name of a person
               in one text and of a place in another: what is around them tells
    relations  two of the names in a text are marked; "maria of acme met jonas of zenith" has
               works_for for two pairs of its names, and none for the others

There is no noise: who follows the rules is always right. A text is in one part alone (training,
validation or test), in whichever task it comes.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from plugin_trainer.errors import DataError

HELD_OUT_SHARE = 8
"""One distinct text in so many belongs to each held-out part, and is never trained on."""

Record = Mapping[str, Any]

# ------------------------------------------------------------------------------------ sentiment

SUBJECTS = (
    *("soup", "staff", "music", "menu", "bread", "view", "wine", "room", "service", "garden"),
    *("coffee", "price", "cook", "table", "light", "crowd"),
)
ADJECTIVES = {
    "positive": ("good", "great", "warm", "friendly", "fresh", "charming", "lovely", "fair"),
    "negative": ("bad", "rude", "cold", "dull", "stale", "awful", "dirty", "poor"),
}
OPPOSITE = {"positive": "negative", "negative": "positive"}
TURNING = ("not", "never")
PLAIN = ("really", "so", "quite")


def sentiment(generator: random.Random) -> tuple[str, Record]:
    """A text of one clause or two, and what it says in the end."""
    clauses, label = [], ""
    for _ in range(generator.choice((1, 1, 2))):
        label = generator.choice(tuple(ADJECTIVES))
        words = [generator.choice(ADJECTIVES[label])]
        if generator.random() < 0.5:
            before = generator.choice(TURNING + PLAIN)
            words.insert(0, before)
            label = OPPOSITE[label] if before in TURNING else label
        clauses.append(" ".join(("the", generator.choice(SUBJECTS), "is", *words)))
    text = " but ".join(clauses)
    return text, {"text": text, "label": label}


# -------------------------------------------------------------------------------- what has names

NAMES: Mapping[str, Sequence[str]] = {
    "person": (
        *("maria", "jonas", "aisha", "pedro", "lena", "omar", "ingrid", "tomas"),
        *("maria keller", "omar haddad", "lena brandt", "pedro silva", "ingrid dahl"),
        *("jordan", "victoria", "florence", "austin"),
    ),
    "company": (
        *("acme", "zenith", "polar", "vertex", "lumina", "corvus"),
        *("north wind", "blue harbor", "iron gate", "red fox"),
        *("phoenix", "amazon", "orlando"),
    ),
    "place": (
        *("berlin", "oslo", "lima", "nairobi", "quito", "turin"),
        *("new haven", "san marco", "port louis", "long beach"),
        *("jordan", "victoria", "florence", "austin", "phoenix", "amazon", "orlando"),
    ),
}
"""The last names of each list are names of something else too."""

BEFORE = ("", "", "", "yesterday", "last year", "in may", "reports say that")
AFTER = ("", "", "", "today", "at last", "for now", "once more")

# A name is {letter:type}: p, q people, c, d companies, l, m places. Then which pairs of names, in
# the order of the text, have a relation; all other pairs have none.
PATTERNS: Sequence[tuple[str, Mapping[str, str]]] = (
    ("{p:person} works for {c:company}", {"pc": "works_for(e1,e2)"}),
    (
        "{p:person} works for {c:company} in {l:place}",
        {"pc": "works_for(e1,e2)", "cl": "located_in(e1,e2)"},
    ),
    ("{c:company} hired {p:person} in {l:place}", {"cp": "works_for(e2,e1)"}),
    (
        "{p:person} of {c:company} met {q:person} of {d:company}",
        {"pc": "works_for(e1,e2)", "qd": "works_for(e1,e2)"},
    ),
    ("{c:company} opened an office in {l:place}", {"cl": "located_in(e1,e2)"}),
    (
        "{l:place} , where {c:company} has an office , welcomed {p:person}",
        {"lc": "located_in(e2,e1)"},
    ),
    ("{p:person} flew from {l:place} to {m:place}", {}),
    ("{p:person} wrote to {q:person} about {c:company}", {}),
    (
        "{c:company} of {l:place} sued {p:person} of {d:company}",
        {"cl": "located_in(e1,e2)", "pd": "works_for(e1,e2)"},
    ),
)
NO_RELATION = "none"


def named_text(
    generator: random.Random,
) -> tuple[list[str], list[tuple[str, str, int, int]], Mapping[str, str]]:
    """The words of a text, its names and which of them have a relation.

    A name is its letter, its type, its first word and the one after its last.
    """
    pattern, relations = generator.choice(PATTERNS)
    words: list[str] = generator.choice(BEFORE).split()
    names: list[tuple[str, str, int, int]] = []
    taken: set[str] = set()
    for word in pattern.split():
        if not word.startswith("{"):
            words.append(word)
            continue
        letter, _, kind = word.strip("{}").partition(":")
        name = generator.choice([name for name in NAMES[kind] if name not in taken])
        taken.add(name)
        names.append((letter, kind, len(words), len(words) + len(name.split())))
        words.extend(name.split())
    words.extend(generator.choice(AFTER).split())
    return words, names, relations


def entities(generator: random.Random) -> tuple[str, Record]:
    """The words of a text and their BIO tags."""
    words, names, _ = named_text(generator)
    tags = ["O"] * len(words)
    for _, kind, start, end in names:
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return " ".join(words), {"tokens": words, "tags": tags}


def relations(generator: random.Random) -> tuple[str, Record]:
    """A text with two of its names marked, and their relation; half of them have one."""
    words, names, related = named_text(generator)
    pairs = [(one, other) for at, one in enumerate(names) for other in names[at + 1 :]]
    having = [pair for pair in pairs if pair[0][0] + pair[1][0] in related]
    without = [pair for pair in pairs if pair not in having]
    wanted = generator.choice((having, without)) or having or without
    first, second = generator.choice(wanted)
    marked = list(words)
    # From the end on, so that the places before are still right.
    for mark, (_, _, start, end) in (("e2", second), ("e1", first)):
        marked[start:end] = [f"<{mark}>", *marked[start:end], f"</{mark}>"]
    label = related.get(first[0] + second[0], NO_RELATION)
    return " ".join(words), {"text": " ".join(marked), "label": label}


# ----------------------------------------------------------------------------------------- rows

TASKS: Mapping[str, Callable[[random.Random], tuple[str, Record]]] = {
    "sentiment": sentiment,
    "entities": entities,
    "relations": relations,
}


def rows(task: str, *, split: str, size: int, seed: int) -> list[Record]:
    """`size` records of a part of a task: "train", "validation" or "test".

    Records are as a JSONL file would have them: {"text", "label"}, and {"tokens", "tags"} for
    entities. Raises DataError for a task that is none of TASKS.
    """
    if task not in TASKS:
        raise DataError(
            f"there is no generated task '{task}'", hint=f"there are: {', '.join(TASKS)}"
        )
    generator = random.Random(f"{task} {split} {seed}")
    drawn: list[Record] = []
    while len(drawn) < size:
        text, record = TASKS[task](generator)
        if part(text) == split:
            drawn.append(record)
    return drawn


def part(text: str) -> str:
    """The split that a text, without marks, belongs to: a function of the text alone."""
    # Not hash(): it differs from one process to the next.
    share = zlib.crc32(text.encode()) % HELD_OUT_SHARE
    return {0: "validation", 1: "test"}.get(share, "train")
