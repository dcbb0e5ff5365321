"""What this plugin offers; imports no torch."""

from __future__ import annotations

from plugin_trainer import CallbackSpec, DataSpec, ModelSpec, RecipeSpec

PTRAIN_API = 1


def ptrain_models() -> list[ModelSpec]:
    """One model: an encoder that all tasks share, with heads for each."""
    return [
        ModelSpec(
            name="shared_encoder",
            target="ptrain_multitask_bert.model:SharedEncoder",
            settings="ptrain_multitask_bert.settings:SharedEncoderSettings",
            summary="one BERT-family encoder for any number of tasks and heads",
            default=True,
        )
    ]


def ptrain_data() -> list[DataSpec]:
    """One data module: any number of tasks on texts."""
    return [
        DataSpec(
            name="tasks",
            target="ptrain_multitask_bert.data:MultitaskData",
            settings="ptrain_multitask_bert.settings:MultitaskSettings",
            summary="texts to classify, entities to find, relations between marked spans",
            default=True,
            defaults_from={"tokenizer": "model_settings.encoder"},
        )
    ]


def ptrain_callbacks() -> list[CallbackSpec]:
    """One callback: the trained model in Hugging Face format."""
    return [
        CallbackSpec(
            name="export",
            target="ptrain_multitask_bert.exporting:Export",
            settings="ptrain_multitask_bert.settings:ExportSettings",
            summary="encoder and tokenizer in Hugging Face format at the end, heads beside them",
            default=True,
            writes=True,
        )
    ]


def ptrain_recipes() -> list[RecipeSpec]:
    """One run file, for the generated tasks and as a pattern for one's own."""
    return [
        RecipeSpec(
            name="three_tasks",
            file="recipe.toml",
            summary="sentiment, entities and relations, generated, in a minute",
            default=True,
        )
    ]
