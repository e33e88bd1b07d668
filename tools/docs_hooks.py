"""Hooks of the docs site (mkdocs.yml): pages that are files of the repository, and links that leave docs/.

Every page reads as well on the repository's own pages: its links are relative there. The site has the same pages and no
source files, so a link to one leads to the repository. A link to nothing ends the build.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

PROJECT = Path(__file__).parents[1]
# Pages that are files elsewhere, or a part of one: the text between two headings.
PAGES = {
    "changelog.md": ("CHANGELOG.md", None),
    "contributing.md": ("CONTRIBUTING.md", None),
    "paper.md": ("experiments/README.md", None),
    "benchmarks.md": ("README.md", "What it costs"),
    "status.md": ("README.md", "Status"),
}
SOURCES = {page: source for page, (source, part) in PAGES.items()}
WHOLE = {source: page for page, (source, part) in PAGES.items() if part is None}


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that lie outside of docs/, and the figures of the experiments."""
    for page, (source, part) in PAGES.items():
        text = (PROJECT / source).read_text(encoding="utf-8")
        if part is not None:
            text = "# " + text[text.index(f"## {part}\n") + 3 :].split("\n## ")[0] + "\n"
        files.append(File.generated(config, page, content=text))
    for picture in (PROJECT / "experiments" / "figures" / "cpu").glob("*.svg"):
        files.append(File.generated(config, str(picture.relative_to(PROJECT)), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Points links at pages of the site, and those to other files at the repository."""
    uri = page.file.src_uri
    source = SOURCES.get(uri, f"docs/{uri}")
    fenced, lines = False, []
    for line in markdown.split("\n"):
        if line.startswith("```"):
            fenced = not fenced
        moved = re.sub(r"\]\(([^)\s]+)\)", lambda link: f"]({_target(link[1], source, uri, config, files)})", line)
        lines.append(line if fenced else moved)
    return "\n".join(lines)


def _target(link: str, source: str, uri: str, config: Any, files: Any) -> str:
    if re.match(r"(?:https?|mailto):", link) or link.startswith("#"):
        return link
    name, mark, anchor = link.partition("#")
    path = os.path.normpath(os.path.join(os.path.dirname(source), name))
    inside = WHOLE.get(path, path.removeprefix("docs/"))
    shown = path.startswith("docs/") or path in WHOLE or path.endswith((".png", ".svg"))
    if shown and files.get_file_from_path(inside):
        return os.path.relpath(inside, os.path.dirname(uri) or ".") + mark + anchor
    if not (PROJECT / path).exists():
        raise PluginError(f"{source} links to {link}, and there is no {path}")
    kind = "tree" if (PROJECT / path).is_dir() else "blob"
    return f"{config['repo_url'].rstrip('/')}/{kind}/main/{path}{mark}{anchor}"
