"""What can go wrong for a user; each error says what happened, where, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class PtrainError(Exception):
    """An error a user can act on.

    message    what happened and where, in one line without a final full stop
    hint       what to do, one line or several; empty if the message says it all
    exit_code  what the command line exits with: 2 the user must change something, 1 training failed
    told       whether the other processes of a run know of it, of which the first tells the user
    """

    exit_code = 2
    told = False

    def __init__(self, message: str, *, hint: str | Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint: tuple[str, ...] = (hint,) if isinstance(hint, str) and hint else tuple(hint)

    def __str__(self) -> str:
        return "\n  ".join((self.message, *self.hint))


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the settings: where it stands, which key, what is wrong."""

    where: str  # "run.toml:12", "--set", "plugin dactbert's recipe:3"
    key: str  # dotted: "optimizer.learning_rate"
    text: str

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.key}: {self.text}" if self.key else f"{self.where}: {self.text}"
        )


class SettingsError(PtrainError):
    """Settings that cannot be used; carries every mistake found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        count = len(problems)
        title = "one mistake in the settings" if count == 1 else f"{count} mistakes in the settings"
        super().__init__(title, hint=[str(problem) for problem in problems])
        self.problems = tuple(problems)


class PluginError(PtrainError):
    """Something about a plugin, which it names."""

    def __init__(self, message: str, *, plugin: str, hint: str | Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.plugin = plugin


class PluginNotFound(PluginError):
    """No plugin of that spelling."""


class PluginBroken(PluginError):
    """A plugin that cannot be imported, or whose hooks are wrong."""


class PluginDuplicate(PluginError):
    """Two installed packages claim one plugin name."""


class PluginIncompatible(PluginError):
    """A plugin written for another version of the plugin API."""


class UnknownOffer(PtrainError):
    """No model, data module, callback, scheduler or recipe of that name."""


class DataError(PtrainError):
    """Data that cannot be read or used."""


class RunFolderError(PtrainError):
    """A run folder that is missing, occupied, in use or not a run folder."""


class UntrustedRun(PtrainError):
    """A run or a study of somebody else's that names code to be loaded."""


class CheckpointError(PtrainError):
    """A checkpoint that is missing or not sound."""


class ResumeError(PtrainError):
    """A run that cannot be continued as asked."""


class TrainingFailed(PtrainError):
    """Training began and could not go on."""

    exit_code = 1


class NonFiniteError(TrainingFailed):
    """The loss or a gradient is NaN or infinite: at which step, and what it was by metric name."""

    def __init__(
        self,
        message: str,
        *,
        step: int,
        metrics: Mapping[str, float],
        hint: str | Sequence[str] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.step = step
        self.metrics = dict(metrics)


class NotSaved(TrainingFailed):
    """A checkpoint could not be written."""


class StudyError(PtrainError):
    """A study that is missing, has changed, or whose database cannot be used."""


class MissingExtra(PtrainError):
    """An optional part was used whose packages are not installed."""
