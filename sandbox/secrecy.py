"""The environment of this process without keys, for processes that run code which need not know them.

Workers and compilers get a few named variables only and need none of this. Not covered: a key in a variable whose name
does not say so.
"""

from __future__ import annotations

import os
import re

_TELLING = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def without_keys() -> dict[str, str]:
    """Every variable whose name does not speak of a key, a token, a secret, a password or credentials."""
    return {name: value for name, value in os.environ.items() if not _TELLING.search(name)}
