"""For the docs site: `Example:` in docstrings is what griffe calls `Examples:`, so that it is shown as code."""

from __future__ import annotations

import re
from typing import Any

import griffe


class OneExample(griffe.Extension):
    """Renames the section in every docstring that is loaded."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Renames it in one."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
