"""How reports show themselves: one line where they are printed, and in a notebook the page of `report.html`."""

from __future__ import annotations

from importlib import import_module


class OneLine:
    """Something that is printed as one line, however much it holds."""

    def _line(self) -> str:
        """What it is, after its name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {' '.join(self._line().split())}>"

    def __str__(self) -> str:
        return repr(self)


class Displayed(OneLine):
    """Something that a notebook shows as HTML."""

    def _repr_html_(self) -> str:
        # What draws it knows the reports, which know nothing of it, and is imported when somebody looks.
        html: str = import_module("jumpout_export.render").render_cell(self)
        return html
