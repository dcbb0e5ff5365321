"""The full-depth classifier in Hugging Face format, its encoder unchanged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plugin_trainer.data.texts.pretrained import quiet_transformers
from ptrain_dactbert.full_depth import FullDepthClassifier


def write_huggingface(
    encoder: Any, unit: Any, folder: Path, *, tokenizer: Any, labels: Sequence[str]
) -> None:
    """Write encoder, last unit, tokenizer and the code of the classifier.

    AutoModel loads the encoder, AutoModelForSequenceClassification with trust_remote_code=True
    both. Raises OSError.
    """
    config = copy.deepcopy(encoder.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: number for number, name in enumerate(labels)}
    config.unit_size = unit.trunk.out_features
    config.unit_pooling = unit.pooling
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        classifier = FullDepthClassifier(config)
        classifier.add_module(classifier.encoder_name, encoder)
        classifier.unit.load_state_dict(unit.state_dict())
        # transformers' own way of keeping code beside weights: save_pretrained copies the file.
        classifier.register_for_auto_class("AutoModelForSequenceClassification")
        classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
