"""A report as one HTML page that needs nothing else: style and plots are in it, scripts and links are not."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING

from jumpout_export.extras import require
from jumpout_export.render.blocks import Document, Plots, places
from jumpout_export.render.plots.style import COLOURS, themed
from jumpout_export.render.writers.document import build_document
from jumpout_export.report import Report

if TYPE_CHECKING:
    from markupsafe import Markup


def render_html(report: Report) -> str:
    """Returns `report` as a self-contained page, the same bytes for the same report.

    Raises:
        ImportError: if jinja2 or matplotlib is not installed; the message names the command that installs them.
    """
    document = build_document(report)
    return page(document, draw_plots(document))


def draw_plots(document: Document) -> dict[str, str]:
    """Returns the plots of a document as name -> standalone SVG.

    Raises:
        ImportError: as `render_html`.
    """
    _require("matplotlib")
    blocks = [block for section in document.sections for block in section.blocks if isinstance(block, Plots)]
    return {plot.name: plot.draw() for block in blocks for plot in block.plots}


def page(document: Document, plots: dict[str, str]) -> str:
    """Returns the page of a document whose plots are drawn.

    Raises:
        ImportError: as `render_html`.
    """
    _require("jinja2")
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"prose": _prose, "places": places}
    template = files("jumpout_export.render.writers").joinpath("report.html.j2").read_text(encoding="utf-8")
    drawn = {
        plot.name: Markup(themed(plots[plot.name], plot.name, f"{plot.title}. {plot.caption}"))
        for section in document.sections
        for block in section.blocks
        if isinstance(block, Plots)
        for plot in block.plots
    }
    return environment.from_string(template).render(document=document, plots=drawn, colours=COLOURS)


def require_page() -> None:
    """Imports what the page and its plots are made with.

    Raises:
        ImportError: as `render_html`.
    """
    _require("matplotlib")
    _require("jinja2")


def _require(module: str) -> None:
    needed = f"report.html and its plots need {module}, which could not be imported"
    require(module, "report", f"{needed} ({{error}}); install it with: ")


def _prose(text: str) -> Markup:
    """Returns escaped text in which `code` between backticks is a code element."""
    from markupsafe import Markup

    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))
