"""A report for people: on the terminal, as Markdown, as one self-contained HTML page, and as files in a folder."""

from jumpout_export.render.writers.files import write_report
from jumpout_export.render.writers.html import render_html, require_page
from jumpout_export.render.writers.markdown import render_markdown
from jumpout_export.render.writers.terminal import render_terminal

__all__ = ["render_html", "render_markdown", "render_terminal", "require_page", "write_report"]
