"""`python -m plugin_trainer` is `ptrain`."""

from __future__ import annotations

import sys

from plugin_trainer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
