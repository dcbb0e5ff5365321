"""Names the wheel's platform when it carries a compiled library, and leaves it for all otherwise.

The library does not care for the version of Python, so the tag is `py3-none-<platform>`. Nothing is
compiled here and torch is not imported: an installation never fails for want of either.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PlatformTag(BuildHookInterface):
    """Looks for `plugin_trainer/_kernels`, which `ptrain kernels build --into-package` writes."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects the files."""
        if version == "standard" and any(Path(self.root, "plugin_trainer/_kernels").glob("*.so")):
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"
