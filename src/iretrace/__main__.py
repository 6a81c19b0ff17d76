"""`python -m iretrace`: the command line without an installation."""

from __future__ import annotations

import sys

from iretrace.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
