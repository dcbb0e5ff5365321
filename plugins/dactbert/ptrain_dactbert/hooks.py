"""What this plugin offers; imports no torch."""

from __future__ import annotations

from plugin_trainer import CallbackSpec, DataSpec, ModelSpec, RecipeSpec, SpaceSpec

PTRAIN_API = 1


def ptrain_models() -> list[ModelSpec]:
    """One model: a classifier with a halting unit after every block of its encoder."""
    return [
        ModelSpec(
            name="classifier",
            target="ptrain_dactbert.classifier:HaltingClassifier",
            settings="ptrain_dactbert.settings:ClassifierSettings",
            summary="BERT-family encoder whose every block may be the last (DACT-BERT)",
            default=True,
        )
    ]


def ptrain_data() -> list[DataSpec]:
    """One data module: labelled texts from files, a Hugging Face data set or a generated task."""
    return [
        DataSpec(
            name="text_classification",
            target="ptrain_dactbert.data:TextClassification",
            settings="ptrain_dactbert.settings:TextClassificationSettings",
            summary="labelled texts or pairs: files, Hugging Face data sets, a generated task",
            default=True,
            defaults_from={"tokenizer": "model_settings.encoder"},
        )
    ]


def ptrain_callbacks() -> list[CallbackSpec]:
    """Where the rows of each evaluation left the encoder."""
    return [
        CallbackSpec(
            name="exit_statistics",
            target="ptrain_dactbert.exit_statistics:ExitStatistics",
            settings="ptrain_dactbert.settings:ExitStatisticsSettings",
            summary="exit blocks by row and by difficulty: a file, and a table at the end",
        ),
    ]


def ptrain_recipes() -> list[RecipeSpec]:
    """The paper's recipe on a generated task, and the one for pretrained encoders."""
    return [
        RecipeSpec(
            name="classify",
            file="recipe.toml",
            summary="three epochs; without a data file, on a small generated task",
            default=True,
        ),
        RecipeSpec(
            name="exits",
            file="exits.toml",
            summary="a pretrained encoder on texts of one's own, with certified early exits",
        ),
    ]


def ptrain_spaces() -> list[SpaceSpec]:
    """Two searches over the recipe: what learns best, and what a block of depth is worth."""
    return [
        SpaceSpec(
            name="loss",
            file="spaces/loss.toml",
            summary="the task loss, by the learning rate and the depth to begin with",
            default=True,
        ),
        SpaceSpec(
            name="loss_and_depth",
            file="spaces/loss_and_depth.toml",
            summary="the task loss and the mean exit block, by tau as well: a front",
        ),
    ]
