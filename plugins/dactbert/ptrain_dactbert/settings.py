"""What a user may set: one frozen dataclass per offer, every key explained in its docstring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Column = str | Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class ClassifierSettings:
    """The encoder, the units on its blocks, and the halting loss.

    encoder            folder or Hub id of a BERT-family encoder; empty: a small one from scratch
    first_blocks       keep only so many blocks of a pretrained encoder; 0: all of them
    hidden_size        width of the encoder from scratch
    num_blocks         blocks of the encoder from scratch
    num_heads          attention heads of the encoder from scratch; must divide hidden_size
    max_positions      longest input, in tokens, of the encoder from scratch
    initializer_range  standard deviation of the first weights of the encoder from scratch; a narrow
                       encoder at a fine-tuning learning rate wants more than BERT's 0.02
    pooling            what a unit reads of its block: "mean" of the tokens, "cls", the first one,
                       or "attention": a mean with learned weights, equal ones to begin with
    unit_size          width of a unit's trunk; 0: the encoder's width
    dropout            dropout in the units, and in the encoder from scratch
    loss               "halting": the loss of DACT-BERT on the accumulated answer; "joint": the
                       cross-entropy of every block's own answer in proportion to its number, which
                       keeps more of a pretrained encoder's accuracy; or "last": that of the last
                       block alone, which is plain fine-tuning, without exits
    halting            where `--exit lossless` has its halting logits from: "learned", by the
                       halting loss, or "agreement", from the calibrated estimate of agreeing with
                       the last block; left out: learned if the loss teaches them
    self_distillation  joint loss: weight of the divergence of earlier blocks' answers from the last
                       one's; 0.3 is harmless, 1.0 costs accuracy at full depth
    tau                weight of the halting regulariser in the loss; 0 switches it off
    regulariser        "sum_h": sum of h_n (DACT-BERT); "sum_p": sum of p_n (DACT)
    block_costs        what each block costs the regulariser, one number a block; empty: 1 each
    deep_supervision   weight of the cross-entropy of every block's own answer, shared out in
                       proportion to the block's number; 0 switches it off
    initial_depth      mean depth, in blocks, with which training begins, from 1 to the number of
                       blocks; left out: a halting bias of 4, nearly full depth
    halting_gain       factor on the halting logits: more lets exits move faster than the rest of
                       the model learns, at the same learning rate
    label_smoothing    share of each label given to all classes alike
    class_weights      weight of each label in the loss, in the order of the labels; empty: 1 each
    delta              run-time knob of the exit: 0 never changes an answer, more leaves earlier
    """

    encoder: str = ""
    first_blocks: Annotated[int, Field(ge=0)] = 0
    hidden_size: Positive = 64
    num_blocks: Positive = 6
    num_heads: Positive = 4
    max_positions: Positive = 512
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    pooling: Literal["mean", "cls", "attention"] = "mean"
    unit_size: Annotated[int, Field(ge=0)] = 0
    dropout: Fraction = 0.1
    loss: Literal["halting", "joint", "last"] = "halting"
    halting: Literal["learned", "agreement"] | None = None
    self_distillation: NotNegative = 0.0
    tau: NotNegative = 0.01
    regulariser: Literal["sum_h", "sum_p"] = "sum_h"
    block_costs: tuple[NotNegative, ...] = ()
    deep_supervision: NotNegative = 1.0
    initial_depth: Annotated[float, Field(ge=1)] | None = None
    halting_gain: Annotated[float, Field(gt=0)] = 1.0
    label_smoothing: Fraction = 0.0
    class_weights: tuple[NotNegative, ...] = ()
    delta: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, kw_only=True)
class TextClassificationSettings:
    """Where the texts are, how to read them, and how they become batches.

    train                  a .tsv, .csv, .jsonl or .parquet file, or "builtin:negation", a
                           generated task; with `dataset`, a split of it, "train" by default
    validation             a file of the same kinds, or a split; left out: a builtin task uses its
                           own validation part, a `dataset` its split "validation" if it has one,
                           and a file is trained on unevaluated
    test                   a file of the same kinds or a split, scored once at the end of the run
    dataset                a Hugging Face data set: its Hub id, or a folder of data files or from
                           save_to_disk; train, validation and test are then splits of it, or parts
                           such as "train[:10%]"; needs the extra "datasets"
    subset                 which subset (configuration) of the data set, such as "sst2" of "glue"
    revision               branch, tag or commit of a data set on the Hub; empty: the latest
    text                   the text's column: a name, or a position counted from 0; "auto": the
                           columns with the usual names of a pair of texts, or the column named
                           text, sentence, content or review, else the first of a file if
                           all its columns are read
    text_pair              the column of the second text of a sentence pair, likewise; "auto": the
                           one that goes with the first by its name; empty: there is none
    label                  the label's column, likewise; "auto": the column named label, labels,
                           class, target, category or sentiment, else the next of such a file
    difficulty             column of a whole number for the exit statistics; empty: none
    header                 whether the first line names the columns; "auto": if its cells are the
                           names looked for; a line that may be a header or not is refused
    labels                 the label names in order; empty: those that a `dataset` or a Parquet file
                           declares (ClassLabel), else those of the training rows, sorted
    unlabelled             what to do with rows of a `dataset` or a Parquet file whose label is -1
                           or missing: "error" refuses them, "drop" leaves them out
    streaming              read the training rows as they are needed, for data that do not fit in
                           memory; the labels must be known and the run's length is in steps
    shuffle_buffer         how many rows of a stream are in memory and shuffled at a time; 1: none
    batch_size             texts per training batch
    bucketed               whether a training batch has texts of about one length, which wastes
                           little on padding; its texts then are together in every epoch
    evaluation_batch_size  texts per batch of evaluation and prediction
    max_tokens             longer texts are cut to this many tokens
    num_workers            processes that prepare batches; 0: none but the main one
    tokenizer              folder or Hub id; left out: the model's encoder; empty: one trained on
                           the training texts, of a stream on the first shuffle_buffer of them
    vocabulary_size        most tokens that a tokenizer trained here may know
    examples               size of the generated training part
    validation_examples    size of the generated validation part
    seed                   chooses the generated texts, and the order of a stream
    """

    train: str = "builtin:negation"
    validation: str = ""
    test: str = ""
    dataset: str = ""
    subset: str = ""
    revision: str = ""
    text: Column = "auto"
    text_pair: Column = "auto"
    label: Column = "auto"
    difficulty: Column = ""
    header: bool | Literal["auto"] = "auto"
    labels: tuple[str, ...] = ()
    unlabelled: Literal["error", "drop"] = "error"
    streaming: bool = False
    shuffle_buffer: Positive = 10_000
    batch_size: Positive = 32
    bucketed: bool = False
    evaluation_batch_size: Positive = 64
    max_tokens: Annotated[int, Field(ge=3)] = 128
    num_workers: Annotated[int, Field(ge=0)] = 0
    tokenizer: str = ""
    vocabulary_size: Annotated[int, Field(ge=300)] = 8000
    examples: Positive = 20_000
    validation_examples: Positive = 1_000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ExitStatisticsSettings:
    """Where the statistics go.

    file  name of the file in the run folder; empty: the table at the end only
    """

    file: str = "exit_statistics.json"
