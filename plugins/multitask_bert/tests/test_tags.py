"""Tags: the schemes they are written in, BIO, and what breaks it."""

from __future__ import annotations

import pytest
from ptrain_multitask_bert.tags import NoTag, Sentence, scheme_of, split_tag, tag_names, to_bio


def sentence(tags: str) -> Sentence:
    written = tuple(tags.split())
    places = tuple(f"a.conll:{line}" for line in range(1, len(written) + 1))
    return Sentence(("word",) * len(written), written, places)


def bio(tags: str, *, scheme: str) -> tuple[str, list[str]]:
    read, problems = to_bio(sentence(tags), scheme=scheme, table="data_settings.tasks.names")
    return " ".join(read), [problem.message for problem in problems]


@pytest.mark.parametrize(
    ("scheme", "written", "read"),
    [
        ("bio", "O B-x I-x B-x O B-y", "O B-x I-x B-x O B-y"),
        ("iob1", "I-x I-x B-x I-x O I-y I-x", "B-x I-x B-x I-x O B-y B-x"),
        ("bioes", "S-x B-x I-x E-x O S-y S-y", "B-x B-x I-x I-x O B-y B-y"),
        ("bioes", "U-x B-x L-x O", "B-x B-x I-x O"),
        ("bio", "B-a-b I-a-b", "B-a-b I-a-b"),
    ],
)
def test_every_scheme_becomes_bio(scheme: str, written: str, read: str) -> None:
    assert bio(written, scheme=scheme) == (read, [])


@pytest.mark.parametrize(
    ("scheme", "written", "said", "read"),
    [
        ("bio", "O I-x", "a.conll:2: I-x after O breaks BIO: an entity begins with B-x", "O B-x"),
        (
            "bio",
            "B-x I-y",
            "a.conll:2: I-y after B-x breaks BIO: an entity begins with B-y",
            "B-x B-y",
        ),
        (
            "bio",
            "I-x",
            "a.conll:1: I-x after the beginning of the sentence breaks BIO: an entity begins with "
            "B-x",
            "B-x",
        ),
        ("bio", "O S-x", "a.conll:2: S-x after O breaks BIO: it knows no S-", "O B-x"),
        (
            "bioes",
            "B-x O",
            "a.conll:2: O after B-x breaks BIOES: an entity of x is not ended yet",
            "B-x O",
        ),
        (
            "bioes",
            "O B-x",
            "a.conll:2: B-x at the end of the sentence breaks BIOES: an entity ends with E-x, or "
            "is S-x",
            "O B-x",
        ),
        ("bioes", "S-x E-x", "a.conll:2: E-x after S-x breaks BIOES: an entity begins with B-x",
         "B-x B-x"),
    ],
)  # fmt: skip
def test_a_tag_that_breaks_its_scheme_is_named_with_its_line_and_repaired_as_seqeval_reads_it(
    scheme: str, written: str, said: str, read: str
) -> None:
    assert bio(written, scheme=scheme) == (read, [said])


def test_the_error_says_how_to_have_it_read_all_the_same() -> None:
    _, (problem,) = to_bio(sentence("I-x"), scheme="bio", table="data_settings.tasks.names")
    assert 'data_settings.tasks.names.scheme = "iob1" or "bioes"' in problem.hint[0]
    assert problem.hint[1].endswith('data_settings.tasks.names.broken_tags = "repair"')


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        (["O B-x I-x", "B-y O"], "bio"),
        (["O I-x I-x", "I-y B-y O"], "iob1"),
        (["O I-x", "B-x O"], "bio"),  # BIO with one broken tag
        (["O B-x E-x"], "bioes"),
        (["O O"], "bio"),
    ],
)
def test_the_scheme_is_told_by_the_tags_that_only_one_has(
    sentences: list[str], scheme: str
) -> None:
    assert scheme_of(tags.split() for tags in sentences) == scheme


@pytest.mark.parametrize("tag", ["person", "B-", "-person", "X-person", "o", "B_person"])
def test_what_is_no_tag_is_refused(tag: str) -> None:
    with pytest.raises(NoTag, match=f"a.conll:3: '{tag}' is no tag of an entity"):
        split_tag(tag, at="a.conll:3")
    assert bio(f"B-x {tag} I-x", scheme="bio")[0] == "B-x O B-x"


def test_outside_is_number_0_and_every_type_has_both_tags() -> None:
    assert tag_names(["x", "y"]) == ("O", "B-x", "I-x", "B-y", "I-y")
