"""An encoder whose every block may be the last: one answer, mixed from those of all its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plugin_trainer.data.texts import encoders
from plugin_trainer.early_exit.blocks import keep_first_blocks
from plugin_trainer.early_exit.fitting import BlockAnswers
from plugin_trainer.early_exit.inference import Exits, exit_early, replay
from plugin_trainer.early_exit.joint import block_shares, weighted_mean
from plugin_trainer.early_exit.rules import Certificate, ExitRule, Patience
from plugin_trainer.early_exit.windows import AT_ONCE, merged
from plugin_trainer.errors import PtrainError
from plugin_trainer.ops import HaltingLoss, halting_exit, halting_loss
from ptrain_dactbert.settings import ClassifierSettings
from ptrain_dactbert.units import HaltingUnit, halting_bias

# N blocks, B rows, T tokens, H width of a block, C classes

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

IGNORED = -100
"""A label that takes no part in the loss, as in torch's cross_entropy."""


class LabelledTexts(Protocol):
    """What the classifier asks of its data module."""

    num_labels: int
    vocabulary_size: int
    pad_id: int
    max_tokens: int


class HaltingClassifier(nn.Module):  # type: ignore[misc]
    """An encoder with a unit on each of its blocks; the halting loss of DACT-BERT, or a joint one.

    In training `logits` is the full answer. In evaluation it is the answer at the block where each
    row may stop, which with delta = 0 has the label of the full answer; with the joint loss it is
    the last block's.
    """

    eta_N: Tensor | None
    alpha_N: Tensor | None
    beta_N: Tensor | None
    class_weights_C: Tensor | None

    def __init__(
        self, settings: ClassifierSettings, data: LabelledTexts, *, encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.settings = settings
        if encoder is None:
            encoder = encoders.build(
                settings, vocabulary_size=data.vocabulary_size, pad_id=data.pad_id
            )
            if settings.first_blocks:
                keep_first_blocks(encoder, settings.first_blocks)
        self.encoder = encoder
        config: Any = self.encoder.config
        self.num_blocks: int = config.num_hidden_layers
        check_used(settings)
        check_fit(settings, data=data, config=config)
        self.learns_halting = settings.loss == "halting" and settings.halting != "agreement"
        self.exit_rule: ExitRule | None = None
        self._default_exit = True
        bias = halting_bias(settings.initial_depth, num_blocks=self.num_blocks)
        self.units = nn.ModuleList(
            HaltingUnit(
                config.hidden_size,
                unit_size=settings.unit_size or config.hidden_size,
                num_labels=data.num_labels,
                dropout=settings.dropout,
                pooling=settings.pooling,
                halting_bias=bias if settings.loss == "halting" else None,
                halting_gain=settings.halting_gain,
            )
            for _ in range(1 if settings.loss == "last" else self.num_blocks)
        )
        for name, values in loss_weights(settings, num_blocks=self.num_blocks).items():
            # They come from the settings, so a checkpoint need not carry them.
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def from_assets(
        cls, settings: ClassifierSettings, data: LabelledTexts, folder: Path
    ) -> HaltingClassifier:
        """The same model from a run's assets; its weights come from a checkpoint afterwards."""
        return cls(settings, data, encoder=encoders.from_folder(folder / "encoder"))

    def save_assets(self, folder: Path) -> None:
        """Write the encoder's configuration: all that is needed to build it again."""
        config: Any = self.encoder.config
        config.save_pretrained(folder / "encoder")

    def forward(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Loss, its parts and the answer of a batch; what the batch holds besides is ignored.

        Without labels, and with a rule set by `exit_by`, the blocks of rows that have left do not
        run.
        """
        if labels is None and self.exit_rule is not None and not self.training:
            return self.answer_early(input_ids, attention_mask, token_type_ids)
        states_NBTH = encoders.block_states(
            self.encoder,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
        )
        logits_NBC, halting_NB = self.unit_logits(states_NBTH, mask_BT=attention_mask)
        result: dict[str, Any] = {}
        if halting_NB is None:
            if labels is not None:
                result |= self.joint_loss(logits_NBC, labels_B=labels)
                if self.training:
                    return result | {"logits": logits_NBC[-1]}
            result |= self.answer_of_blocks(logits_NBC, None)
            if labels is not None:
                result["metrics"]["block_accuracy"] = block_accuracy(logits_NBC, labels_B=labels)
            return result
        if labels is not None:
            loss = self.loss(logits_NBC, halting_NB=halting_NB, labels_B=labels)
            result |= self.loss_and_parts(loss, labels_B=labels)
            if self.training:
                return result | {"logits": loss.log_answer}
        if not self._default_exit:
            return result | self.answer_of_blocks(logits_NBC, halting_NB)
        return result | self.answer_at_the_exit(logits_NBC, halting_NB=halting_NB)

    def exit_by(self, rule: ExitRule | None) -> None:
        """Leave by a rule from now on, not by the settings' delta; None: all blocks, always."""
        if rule is not None and self.settings.loss == "last":
            raise PtrainError("a model of loss = 'last' answers after its last block only")
        self.exit_rule = rule
        self._default_exit = False

    def block_logits(
        self, *, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Class logits [N, B, C] of every block, and halting logits [N, B] if they are learned."""
        states_NBTH = encoders.block_states(
            self.encoder,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
        )
        return self.unit_logits(states_NBTH, mask_BT=attention_mask)

    def block_answers(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> BlockAnswers:
        """What every block answers on a batch, to calibrate the exits."""
        logits_NBC, _halting_NB = self.block_logits(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return BlockAnswers(logits_NBC)

    def answer_window(self, batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer batches of prediction as one window, each row up to its exit."""
        sizes = [len(batch["input_ids"]) for batch in batches]
        answers = self.answer_early(
            **{"token_type_ids": None, **merged(batches, _INPUTS)},
            rows_at_once=min(AT_ONCE, max(sizes)),
        )
        parts = {name: values.split(sizes) for name, values in answers.items()}
        return [{name: parts[name][at] for name in parts} for at in range(len(sizes))]

    def answer_early(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None,
        *,
        rows_at_once: int | None = None,
    ) -> dict[str, Any]:
        """Run each row's blocks up to its exit, and no further; see `run_blocks`."""
        assert self.exit_rule is not None
        inputs = encoders.inputs_of(self.encoder, input_ids, attention_mask, token_type_ids)

        def unit(block: int, states_RTH: Tensor, rows_R: Tensor) -> tuple[Tensor, Tensor | None]:
            mask_RT = (
                attention_mask[rows_R] if len(rows_R) < len(attention_mask) else attention_mask
            )
            mask_RT = mask_RT[:, : states_RTH.shape[1]]
            with torch.autocast(device_type=mask_RT.device.type, enabled=False):
                answer: tuple[Tensor, Tensor | None] = self.units[block - 1](
                    states_RTH.float(), mask_RT
                )
            return answer

        exits = exit_early(
            self.encoder,
            inputs,
            unit,
            self.exit_rule,
            num_blocks=self.num_blocks,
            rows_at_once=rows_at_once,
        )
        return {"logits": exits.answer_BC.log_softmax(-1), "exit_block": exits.block_B}

    def unit_logits(
        self, states_NBTH: tuple[Tensor, ...], *, mask_BT: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What the units say of each block: class logits [N, B, C], and halting logits [N, B] if
        they learn them. With loss = 'last' N is 1.
        """
        # Under autocast too: the loss multiplies N probabilities, and an exit compares them with 1.
        with torch.autocast(device_type=mask_BT.device.type, enabled=False):
            answers = [
                unit(states.float(), mask_BT)
                for unit, states in zip(self.units, states_NBTH[-len(self.units) :], strict=True)
            ]
        logits_NBC = torch.stack([z_BC for z_BC, _ in answers])
        if self.settings.loss != "halting":
            return logits_NBC, None
        return logits_NBC, torch.stack([u_B for _, u_B in answers])

    def joint_loss(self, logits_NBC: Tensor, *, labels_B: Tensor) -> dict[str, Any]:
        """The cross-entropy of every block's answer, weighted n / sum n, a mean over labelled rows.

        Self-distillation adds the Kullback-Leibler divergence of each earlier block's answer from
        the last one's, which gets no gradient from it, with the same weights.
        """
        num_blocks, _, num_classes = logits_NBC.shape
        labelled_B = labels_B.ne(IGNORED)
        count = labelled_B.sum()
        share_N = block_shares(num_blocks).to(logits_NBC.device)
        with torch.autocast(device_type=labels_B.device.type, enabled=False):
            each_NB = F.cross_entropy(
                logits_NBC.reshape(-1, num_classes),
                labels_B.repeat(num_blocks),
                weight=self.class_weights_C,
                ignore_index=IGNORED,
                label_smoothing=self.settings.label_smoothing,
                reduction="none",
            ).view(num_blocks, -1)
            parts = {"task_loss": weighted_mean(each_NB, share_N, count=count)}
            if self.settings.self_distillation > 0:
                log_probs_NBC = logits_NBC.log_softmax(-1)
                earlier_N = block_shares(num_blocks - 1).to(logits_NBC.device)
                last_BC = log_probs_NBC[-1].detach()
                divergence_NB = (last_BC.exp() * (last_BC - log_probs_NBC[:-1])).sum(-1)
                mean = weighted_mean(divergence_NB * labelled_B, earlier_N, count=count)
                parts["self_distillation"] = self.settings.self_distillation * mean
        loss: Any = sum(parts.values())
        return {"loss": loss, "parts": parts, "count": count}

    def answer_of_blocks(self, logits_NBC: Tensor, halting_NB: Tensor | None) -> dict[str, Any]:
        """Each row's exit by the rule, all blocks being known; without one the full answer.

        `exit_agreement` is with the full answer of the same rule, `last_block_agreement` with the
        last block's own answer.
        """
        rule = self.exit_rule
        exits, full_BC = replay(rule or self._full_depth(), logits_NBC, halting_NB)
        if rule is None:
            exits = Exits(full_BC, torch.full_like(exits.block_B, self.num_blocks))
        answers_B, last_B = exits.answer_BC.argmax(-1), logits_NBC[-1].argmax(-1)
        return {
            "metrics": {
                "mean_exit_block": exits.block_B.float().mean(),
                "exit_agreement": answers_B.eq(full_BC.argmax(-1)).float().mean(),
                "last_block_agreement": answers_B.eq(last_B).float().mean(),
            },
            "logits": exits.answer_BC.log_softmax(-1).float(),
            "exit_block": exits.block_B,
            "full_logits": full_BC.log_softmax(-1).float(),
        }

    def _full_depth(self) -> ExitRule:
        """The rule whose full answer is the model's: accumulated, or the last block's."""
        return Certificate() if self.settings.loss == "halting" else Patience(self.num_blocks)

    def loss(self, logits_NBC: Tensor, *, halting_NB: Tensor, labels_B: Tensor) -> HaltingLoss:
        """The halting loss, a mean over the labelled rows.

        With class weights too the divisor is the number of rows: a mean over them is then the same
        whether they come as one batch or as several.
        """
        with torch.autocast(device_type=labels_B.device.type, enabled=False):
            return halting_loss(
                logits_NBC,
                halting_NB,
                labels_B,
                tau=self.settings.tau,
                alpha=self.alpha_N,
                beta=self.beta_N,
                eta=self.eta_N,
                ignore_index=IGNORED,
                class_weight=self.class_weights_C,
                label_smoothing=self.settings.label_smoothing,
                normalizer=labels_B.ne(IGNORED).sum(),
            )

    def loss_and_parts(self, loss: HaltingLoss, *, labels_B: Tensor) -> dict[str, Any]:
        """The loss with the terms that are switched on, as they stand in it."""
        parts = {"task_loss": loss.task_loss}
        if self.settings.deep_supervision > 0:
            parts["supervision"] = loss.supervision
        if self.settings.tau > 0:
            parts["halting"] = self.settings.tau * loss.regulariser
        return {"loss": loss.loss, "parts": parts, "count": labels_B.ne(IGNORED).sum()}

    def answer_at_the_exit(self, logits_NBC: Tensor, *, halting_NB: Tensor) -> dict[str, Any]:
        """Each row's own exit, whatever other rows are in the batch."""
        exits = halting_exit(logits_NBC, halting_NB, delta=self.settings.delta)
        agrees_B = exits.log_answer.argmax(-1).eq(exits.full_log_answer.argmax(-1))
        return {
            "metrics": {
                "mean_exit_block": exits.exit_block.float().mean(),
                "exit_agreement": agrees_B.float().mean(),
            },
            "logits": exits.log_answer,
            "exit_block": exits.exit_block,
            "full_logits": exits.full_log_answer,
        }

    def export_onnx(self, folder: Path, *, loaded: Any, **options: Any) -> list[str]:
        """Fill an empty folder with one ONNX segment a block; see `ptrain_dactbert.export`."""
        from ptrain_dactbert.export import export

        return export(loaded, folder, **options)


def loss_weights(settings: ClassifierSettings, *, num_blocks: int) -> Mapping[str, Tensor | None]:
    """The weights of the loss as halting_loss takes them; None where it has none."""
    costs_N = torch.tensor(settings.block_costs or (1.0,) * num_blocks)
    on_h = settings.regulariser == "sum_h"
    weights = settings.class_weights
    return {
        "alpha_N": costs_N if on_h else torch.zeros(num_blocks),
        "beta_N": torch.zeros(num_blocks) if on_h else costs_N,
        "eta_N": settings.deep_supervision * block_shares(num_blocks)
        if settings.deep_supervision > 0
        else None,
        "class_weights_C": torch.tensor(weights) if weights else None,
    }


def block_accuracy(logits_NBC: Tensor, *, labels_B: Tensor) -> Tensor:
    """The accuracy of all blocks' answers, weighted as in the joint loss.

    The last block is at its best before the earlier ones are; this says when all of them are.
    """
    right_NB = logits_NBC.argmax(-1).eq(labels_B).float()
    share_N = block_shares(len(logits_NBC)).to(logits_NBC.device)
    return weighted_mean(right_NB, share_N, count=labels_B.ne(IGNORED).sum())


_OF_HALTING = (
    "tau",
    "regulariser",
    "block_costs",
    "deep_supervision",
    "initial_depth",
    "halting_gain",
    "delta",
)


def check_used(settings: ClassifierSettings) -> None:
    """Refuse a key that the loss does not read."""
    if settings.halting == "learned" and settings.loss != "halting":
        raise PtrainError(
            f"model_settings.halting is 'learned', and loss = '{settings.loss}' teaches no halting",
            hint="leave out model_settings.halting, or set model_settings.loss to 'halting'",
        )
    if settings.first_blocks and not settings.encoder:
        raise PtrainError(
            "model_settings.first_blocks is for a pretrained encoder",
            hint="set model_settings.num_blocks, or name an encoder",
        )
    unused: tuple[str, ...] = () if settings.loss == "halting" else _OF_HALTING
    if settings.loss != "joint":
        unused = ("self_distillation", *unused)
    default = ClassifierSettings()
    for key in unused:
        if getattr(settings, key) != getattr(default, key):
            raise PtrainError(
                f"model_settings.{key} has no effect with loss = '{settings.loss}'",
                hint=f"leave out model_settings.{key}, or change model_settings.loss",
            )


def check_fit(settings: ClassifierSettings, *, data: LabelledTexts, config: Any) -> None:
    """Refuse settings that do not fit the encoder or the data, before a step is made."""
    blocks: int = config.num_hidden_layers
    if settings.initial_depth is not None and settings.initial_depth > blocks:
        raise PtrainError(
            f"model_settings.initial_depth is {settings.initial_depth:g}, "
            f"the encoder has {blocks} blocks",
            hint=f"use a number from 1 to {blocks}",
        )
    if settings.block_costs and len(settings.block_costs) != blocks:
        raise PtrainError(
            f"model_settings.block_costs has {len(settings.block_costs)} numbers, "
            f"the encoder has {blocks} blocks",
            hint="give one number a block, or none",
        )
    if settings.class_weights and len(settings.class_weights) != data.num_labels:
        raise PtrainError(
            f"model_settings.class_weights has {len(settings.class_weights)} numbers, "
            f"the data has {data.num_labels} labels",
            hint="give one number a label, in the order of data_settings.labels",
        )
    encoders.check_inputs(
        config,
        vocabulary_size=data.vocabulary_size,
        max_tokens=data.max_tokens,
        key="data_settings.max_tokens",
    )
