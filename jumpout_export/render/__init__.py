"""A report for people, on the terminal, as Markdown, as one HTML page and in a folder; for pipelines, as test cases."""

from jumpout_export.render.cases import cases_of, parts_of, verdict_of
from jumpout_export.render.writers.cell import render_cell
from jumpout_export.render.writers.failure import render_failure
from jumpout_export.render.writers.files import append_summary, write_junit, write_report
from jumpout_export.render.writers.html import render_html, require_page
from jumpout_export.render.writers.junit import render_junit
from jumpout_export.render.writers.markdown import render_markdown
from jumpout_export.render.writers.summary import render_summary
from jumpout_export.render.writers.terminal import render_terminal

__all__ = [
    "append_summary",
    "cases_of",
    "parts_of",
    "render_cell",
    "render_failure",
    "render_html",
    "render_junit",
    "render_markdown",
    "render_summary",
    "render_terminal",
    "require_page",
    "verdict_of",
    "write_junit",
    "write_report",
]
