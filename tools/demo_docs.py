"""Runs the demo and writes what the docs show of it: the README's output, and the pictures in docs/pictures.

    python tools/demo_docs.py [RUN]

RUN is a folder in which the demo ran before with --out, and its output in RUN/stdout; without it the demo runs.

The page is photographed with Chromium, where there is one; without it the picture stays as it was.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

PROJECT = Path(__file__).parents[1]
README = PROJECT / "README.md"
PICTURES = PROJECT / "docs" / "pictures"
PLOTS = {"plot-drift.svg": "w.svg", "plot-attribution.svg": "causes.svg"}
MARKS = "<!-- demo-output -->\n```text\n", "```\n<!-- /demo-output -->"
# What is shown: from the line that matches to the next empty line.
SHOWN = (r" +ln r *$", r"- Origin before", r"- `bn\d` before", r"quantity +before +after", r"Train: ", r"\S PASS: ")


def excerpt(output: str) -> str:
    """Returns what the README shows of the demo's output."""
    lines = [line.rstrip() for line in output.splitlines()]
    parts = []
    for pattern in SHOWN:
        start = next(number for number, line in enumerate(lines) if re.match(pattern, line))
        end = next(
            n for n in range(start + 1, len(lines) + 1) if not "".join(lines[n : n + 1]) or lines[n][:5] == "r is "
        )
        if re.match(r"[-\S] ", lines[start]):  # a sentence
            end = next((n for n in range(start + 1, end) if lines[n].startswith("- ")), end)
            sentence = " ".join(map(str.strip, lines[start:end]))
            parts.append(textwrap.fill(sentence, 116, subsequent_indent="  "))
        else:
            parts.append("\n".join(lines[start:end]))
    return "\n\n".join(parts).replace("\n\n- `bn", "\n- `bn", 1) + "\n"


def replaced(readme: str, shown: str) -> str:
    """Returns the README with `shown` as the demo's output."""
    before, rest = readme.split(MARKS[0])
    return before + MARKS[0] + shown + MARKS[1] + rest.split(MARKS[1])[1]


def photograph(page: Path, picture: Path) -> None:
    """Takes a picture of the top of a page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print(f"{picture}: stays as it was, there is no Chromium", file=sys.stderr)
        return
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,900"]
    command = [browser, *arguments, f"--screenshot={picture}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> None:
    """Writes the excerpt and the pictures."""
    run = Path(sys.argv[1] if len(sys.argv) > 1 else PROJECT / "runs" / "demo")
    if len(sys.argv) == 1:
        run.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "jumpout_export", "demo", "--out", str(run)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout
        (run / "stdout").write_text(output, encoding="utf-8")
    readme = replaced(README.read_text(encoding="utf-8"), excerpt((run / "stdout").read_text(encoding="utf-8")))
    README.write_text(readme, encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    for plot, picture in PLOTS.items():
        shutil.copyfile(run / plot, PICTURES / picture)
    photograph(run / "report.html", PICTURES / "report.png")


if __name__ == "__main__":
    main()
