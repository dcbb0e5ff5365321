"""What a user may set about the tasks: where their texts are, how they are read and batched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

Positive = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Column = str | Annotated[int, Field(ge=0)]

TaskKind = Literal["classification", "entities", "relations"]
Scheme = Literal["auto", "bio", "iob1", "bioes"]


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """One question that a task asks of its texts.

    kind           of a classification: "single_label", "multi_label" (any number of labels a text)
                   or "regression" (a number); the heads of entities and relations have one kind,
                   "auto"
    column         the column of its labels, a name, or a position counted from 0; "auto": the one
                   that is called like the head, or, of an only head, the task's `label`
    columns        of a multi_label head: one column of 0 and 1 for each label, in place of `column`
    separator      of a multi_label head: what stands between the labels of a text in one cell
    labels         the label names in order; empty: those that a data set declares, else those of
                   the training rows, sorted
    weight         factor on the loss of this head
    threshold      of a multi_label head: the probability from which on a label is given
    class_weights  factor on the loss of a label, by its name; 1 for those left out
    tolerance      of a regression whose task has exits: how far a number that leaves early may be
                   from that of full depth
    """

    kind: Literal["auto", "single_label", "multi_label", "regression"] = "auto"
    column: Column = "auto"
    columns: tuple[str, ...] = ()
    separator: Annotated[str, Field(min_length=1)] = ","
    labels: tuple[str, ...] = ()
    weight: Weight = 1.0
    threshold: Probability = 0.5
    class_weights: Mapping[str, Weight] = field(default_factory=dict)
    tolerance: Weight = 0.0


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """One task: where its texts are, and what is asked of them.

    kind                   "classification": labels or numbers for a text or a pair of texts;
                           "entities": a tag for every word; "relations": a label for two marked
                           spans, <e1> ... </e1> and <e2> ... </e2>
    train                  a file, or "builtin:NAME", a generated task. Classification: .tsv, .csv,
                           .jsonl, .parquet. Entities: .jsonl, .parquet; any other ending is read as
                           CoNLL. Relations: .tsv, .csv, .jsonl, .parquet, and .txt as SemEval-2010
                           task 8 writes them
    validation             a file of the same kinds, or "last 800" or "10 %" for a part of the
                           training rows that is then not trained on: the last ones, or a share
                           drawn by the seed. Left out: a builtin task uses its own validation part,
                           a `dataset` its split "validation" if it has one, and a file is trained
                           on unevaluated
    test                   a file of the same kinds, scored once at the end of the run
    dataset                a Hugging Face data set: its Hub id, or a folder of data files or from
                           save_to_disk; train, validation and test are then splits of it, or parts
                           such as "train[:10%]"; needs the extra "datasets"
    subset                 which subset (configuration) of the data set
    revision               branch, tag or commit of a data set on the Hub; empty: the latest
    text                   the text's column: a name, or a position counted from 0; "auto": a usual
                           name, else the first
    text_pair              the column of the second text of a pair, likewise; empty: there is none
    label                  the label's column of a task without `heads`, likewise
    tokens                 of entities: the column of the words; "auto": tokens or words, and in a
                           CoNLL file the first
    tags                   of entities: the column of the tags; "auto": tags, ner_tags or labels,
                           and in a CoNLL file the last
    scheme                 of entities, how the tags are written: "bio", "iob1" (B- only between two
                           entities that touch), "bioes" (also called BILOU); "auto" tells by the
                           tags of the file
    broken_tags            of entities, tags that break the scheme: "error" refuses the file,
                           "repair" lets what goes on with no entity begin one
    header                 whether the first line of a table names its columns; "auto": if its cells
                           are the names looked for
    labels                 the label names of a task without `heads`, in order; of entities their
                           types
    unlabelled             rows of a `dataset` or a Parquet file without a label: "error" refuses
                           them, "drop" leaves them out
    heads                  tables of settings by name of head; empty: one head, called "label",
                           "entities" or "relation"
    batch_size             texts in a training batch; 0: as all tasks
    evaluation_batch_size  texts in a batch of evaluation and prediction; 0: as all tasks
    max_tokens             longer texts are cut to this many tokens; 0: as all tasks
    exits                  whether every block of the encoder learns to answer, so that texts may
                           leave early; the task has one head then
    examples               size of the training part of a generated task
    validation_examples    size of its validation part, and of its test part
    """

    kind: TaskKind = "classification"
    train: str = ""
    validation: str = ""
    test: str = ""
    dataset: str = ""
    subset: str = ""
    revision: str = ""
    text: Column = "auto"
    text_pair: Column = "auto"
    label: Column = "auto"
    tokens: Column = "auto"
    tags: Column = "auto"
    scheme: Scheme = "auto"
    broken_tags: Literal["error", "repair"] = "error"
    header: bool | Literal["auto"] = "auto"
    labels: tuple[str, ...] = ()
    unlabelled: Literal["error", "drop"] = "error"
    heads: Mapping[str, HeadSettings] = field(default_factory=dict)
    batch_size: Size = 0
    evaluation_batch_size: Size = 0
    max_tokens: Size = 0
    exits: bool = False
    examples: Positive = 4_000
    validation_examples: Positive = 500


@dataclass(frozen=True, kw_only=True)
class MultitaskSettings:
    """The tasks, and what is the same for all of them.

    tasks                  tables of settings by name of task
    batch_size             texts in a training batch of a task
    evaluation_batch_size  texts in a batch of evaluation and prediction
    max_tokens             longer texts are cut to this many tokens
    bucketed               whether a batch has texts of about one length, which wastes little on
                           padding; which texts are together is then drawn once, and the order of
                           the batches anew in every epoch
    num_workers            processes that prepare batches of each task; 0: none but the main one
    tokenizer              folder or Hub id; left out: the model's encoder; empty: one trained on
                           the training texts of all tasks
    vocabulary_size        most tokens that a tokenizer trained here may know
    seed                   chooses generated texts, shares held out, and which texts are together
    """

    tasks: Mapping[str, TaskSettings] = field(default_factory=dict)
    batch_size: Positive = 32
    evaluation_batch_size: Positive = 64
    max_tokens: Annotated[int, Field(ge=3)] = 128
    bucketed: bool = False
    num_workers: Size = 0
    tokenizer: str = ""
    vocabulary_size: Annotated[int, Field(ge=300)] = 8000
    seed: int = 0
