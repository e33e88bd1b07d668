"""The logger `jumpout_export`: at DEBUG it says which step runs. It has no handler of its own and logs nothing else.

logging.basicConfig()
logging.getLogger("jumpout_export").setLevel(logging.DEBUG)
"""

from __future__ import annotations

import logging

_LOGGER = logging.getLogger("jumpout_export")
_LOGGER.addHandler(logging.NullHandler())


def log_step(step: str) -> None:
    """Says that a step begins."""
    _LOGGER.debug("%s", step)
