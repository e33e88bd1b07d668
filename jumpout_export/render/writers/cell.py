"""A report in the cell of a notebook: the page of `report.html` in a frame of its own, so that no style leaks out."""

from __future__ import annotations

import html

from jumpout_export.render.plots.monitor import plot_monitor
from jumpout_export.render.writers.html import render_html
from jumpout_export.report import MonitorHistory, Report

# A page is as high as it is; a frame that runs no scripts cannot know, and is pulled larger at its corner.
_HEIGHT = "36em"


def render_cell(report: Report | MonitorHistory) -> str:
    """Returns what a notebook shows of a report, the page, or of a monitor's history, the plot.

    Where a package of the `report` extra is missing, it is one line and the command that installs it.
    """
    try:
        if isinstance(report, MonitorHistory):
            return plot_monitor(report).decode()
        page = render_html(report)
    except ImportError as error:
        return f"<pre>{html.escape(repr(report))}</pre><p>{html.escape(str(error))}</p>"
    style = f"width: 100%; height: {_HEIGHT}; border: 0; resize: vertical; overflow: auto"
    return f'<iframe sandbox srcdoc="{html.escape(page)}" title="{html.escape(repr(report))}" style="{style}"></iframe>'
