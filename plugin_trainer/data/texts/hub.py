"""Whether the Hugging Face Hub answers is asked once, before a library tries it for a minute."""

from __future__ import annotations

from huggingface_hub import constants, get_session

from plugin_trainer.errors import DataError


def why_unreachable() -> str:
    """Why the Hub does not answer, in a few words; empty if it does.

    Takes one request without a retry, and at most HF_HUB_ETAG_TIMEOUT seconds (10 by default).
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the session's library differs from one Hub release to the next
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def unreachable(name: str, *, key: str, why: str, instead: str) -> DataError:
    """The error for something that is not in the cache while the Hub does not answer.

    instead  what else to give in place of a Hub id
    """
    return DataError(
        f"{key}: {name} could not be had from the Hugging Face Hub, {constants.ENDPOINT}: {why}",
        hint=(
            f"it is not in the cache {constants.HF_HUB_CACHE} either",
            "check the name and be online once: it is kept and needs no connection afterwards",
            f"or give {instead}",
        ),
    )
