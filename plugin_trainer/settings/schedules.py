"""What core's schedules take, in [schedule_settings]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class DecaySettings:
    """What a schedule decays to.

    final_factor  the share of the learning rate that is left at the end of the run
    """

    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Nothing can be set."""
