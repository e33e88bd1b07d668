"""The documentation is current: its code runs, its links lead somewhere, its commands, options and messages exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
import traceback
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from support.project import PROJECT

import jumpout_export
from jumpout_export.cli.app import app

PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *PROJECT.glob("docs/**/*.md"),
]
# The site's navigation, in order; mkdocs.yml has a tag that only mkdocs can read.
NAV = re.findall(r"^ +- (?:[^:\n]+: )?(\S+\.md)$", (PROJECT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
HOW_TO = [PROJECT / "docs" / name for name in NAV if name.startswith("how-to/")]
GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = GROUP.commands
# What typer raises for wrong arguments, under every version's name for it.
UsageError = typer.BadParameter.__mro__[1]
TOPS = ("", *(f"{top}/**/" for top in ("jumpout_export", "cpp", "tests", "tools", "examples", "benchmarks")))
SHELL = ("bash", "console", "sh", "yaml", "")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the number of its first line, and why it is not run ('' if it is)."""

    language: str
    text: str
    line: int
    no_run: str


def blocks(markdown: str) -> list[Block]:
    lines, found, start = markdown.splitlines(), [], None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
        else:
            mark = re.fullmatch(r"<!-- no-run:?(.*)-->", lines[start - 1]) if start else None
            assert mark is None or mark[1].strip(), f"line {start}: no-run needs a reason"
            text = "\n".join(lines[start + 1 : number])
            found.append(Block(lines[start][3:].strip(), text, start + 2, mark[1].strip() if mark else ""))
            start = None
    assert start is None, f"line {start}: a block does not end"
    return found


def unfenced(markdown: str) -> str:
    return re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL)


def prose(markdown: str) -> str:
    """The page without its fenced and indented blocks."""
    return re.sub(r"^ {4}.*$", "", unfenced(markdown), flags=re.MULTILINE)


def run_blocks(*pages: tuple[str, str]) -> None:
    """Runs the Python blocks of pages, (name, text) each, in one namespace; a traceback shows the page's own lines."""
    module = types.ModuleType(f"page_{Path(pages[0][0]).stem}")
    sys.modules[module.__name__] = module
    try:
        for name, markdown in pages:
            for block in blocks(markdown):
                if block.language == "python" and not block.no_run:
                    source = "\n" * (block.line - 1) + block.text
                    exec(compile(source, name, "exec"), vars(module))
    finally:
        del sys.modules[module.__name__]


def slugs(markdown: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", unfenced(markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, markdown: str) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(markdown))):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        text = markdown if file == page else file.read_text(encoding="utf-8") if anchor and file.is_file() else ""
        if not (file == page or file.exists()) or (anchor and anchor not in slugs(text)):
            broken.append(target)
    return broken


def wrong_files(markdown: str) -> list[str]:
    """Source files that the prose names and that do not exist; a name may leave out its folders."""
    named = {name for span in spans(markdown) for name in re.findall(r"[\w./*-]+\.(?:py|h|cpp|cu)\b", span)}
    return [name for name in sorted(named) if not any(any(PROJECT.glob(top + name)) for top in TOPS)]


def spans(markdown: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(markdown))


# What the usage of the programs in C++ lists, read from their sources.
CPP_OPTIONS = frozenset(
    re.findall(r"--[a-z]+(?:-[a-z]+)*", "".join(file.read_text() for file in PROJECT.glob("cpp/replay/*command.cpp")))
)


def wrong_commands(markdown: str) -> list[str]:
    """What the page says about the command line and is not so."""
    shell = [block.text for block in blocks(markdown) if block.language in SHELL]
    shell += re.findall(r"^ {4}(.*)$", unfenced(markdown), flags=re.MULTILINE)
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    wrong = [text for line in lines if "jumpout-export " in line and (text := wrong_arguments(line))]
    for span in spans(markdown):
        if span.startswith("jumpout-export "):
            name, *arguments = shlex.split(span)[1:]
            if name.startswith("-"):
                wrong += [f"{span}: no option {text}" for text in (name, *arguments) if unknown_option(text, [])]
            elif name not in COMMANDS:
                wrong.append(f"{span}: no such command")
            else:
                wrong += [f"{span}: no option {text}" for text in arguments if unknown_option(text, [name])]
        elif span.startswith("--"):
            texts = [text for text in re.split(r"[ /]+", span) if text.split("=")[0] not in CPP_OPTIONS]
            wrong += [f"no command has {text}" for text in texts if unknown_option(text, COMMANDS)]
    return wrong


def wrong_arguments(line: str) -> str:
    """Parses a command as the command line would, without running it."""
    text = line[line.index("jumpout-export ") :].replace("[OPTIONS]", "")
    _, name, *arguments = shlex.split(text, comments=True)
    if name not in COMMANDS:
        return f"{line}: no such command"
    try:
        COMMANDS[name].make_context(name, arguments)
    except UsageError as error:
        return f"{line}: {error}"
    return ""


def unknown_option(text: str, names: Any) -> bool:
    """Whether none of the commands has the option, nor the program without a command."""
    parameters = [parameter for command in (GROUP, *map(COMMANDS.get, names)) for parameter in command.params]
    known = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= set(GROUP.context_settings["help_option_names"])
    return text.startswith("-") and text not in known


def string_literals(source: str) -> list[str]:
    """The texts in a Python source; a value filled in is a NUL, unless it is a constant of the module."""
    tree = ast.parse(source)
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def text(part: ast.expr) -> str:
        if isinstance(part, ast.FormattedValue):
            return constants.get(getattr(part.value, "id", ""), "\0")
        return str(getattr(part, "value", "\0"))

    joined = ["".join(map(text, node.values)) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    plain = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return joined + plain


def unknown_messages(markdown: str) -> list[str]:
    """Messages of the table that no source file holds; `…` stands for what is filled in."""
    quoted = [
        cell for row in re.findall(r"^\| (`.*?) \|", markdown, re.MULTILINE) for cell in re.findall(r"`([^`]+)`", row)
    ]
    assert quoted, "the table of messages is empty"
    literals = [text for file in PROJECT.glob("jumpout_export/**/*.py") for text in string_literals(file.read_text())]
    parts = [part.strip() for message in quoted for part in message.split("…")]
    return [part for part in parts if not any(part in literal for literal in literals)]


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize(
    "pages", [HOW_TO, *([page] for page in PAGES if page not in HOW_TO)], ids=lambda pages: pages[-1].stem
)
def test_the_code_of_the_pages_runs(pages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(*((page.name, page.read_text(encoding="utf-8")) for page in pages))


def test_the_site_shows_every_page():
    generated = ("status.md", "changelog.md", "benchmarks.md", "paper.md", "contributing.md")  # tools/docs_hooks.py
    assert sorted({*NAV} - {*generated}) == sorted(str(page.relative_to(PROJECT / "docs")) for page in PAGES[4:])


@each_page
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@each_page
def test_files_that_are_named_exist(page):
    assert wrong_files(page.read_text(encoding="utf-8")) == []


@each_page
def test_commands_and_options_exist(page):
    assert wrong_commands(page.read_text(encoding="utf-8")) == []


def test_the_command_line_page_is_current():
    spec = importlib.util.spec_from_file_location("cli_docs", PROJECT / "tools" / "cli_docs.py")
    cli_docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cli_docs)
    assert cli_docs.PAGE.read_text(encoding="utf-8") == cli_docs.page(), "run `python tools/cli_docs.py`"


@pytest.mark.integration
def test_messages_in_the_troubleshooting_table_exist():
    assert unknown_messages((PROJECT / "docs" / "faq.md").read_text(encoding="utf-8")) == []


def test_every_public_name_and_every_command_is_explained():
    guide = "".join(page.read_text(encoding="utf-8") for page in HOW_TO)
    concepts = (PROJECT / "docs" / "concepts.md").read_text(encoding="utf-8")
    missing = [name for name in jumpout_export.__all__ if name not in guide + concepts]
    missing += [name for name in COMMANDS if f"jumpout-export {name}" not in guide]
    assert missing == []


def fenced(code: str, language: str = "python", before: str = "") -> str:
    return f"# Page\n\n{before}```{language}\n{code}\n```\n"


def test_a_broken_block_is_found_with_its_line():
    page = fenced("x = 1") + fenced("assert x == 2")
    with pytest.raises(AssertionError) as caught:
        run_blocks(("page.md", page))
    last = traceback.extract_tb(caught.tb)[-1]
    assert (last.filename, page.splitlines()[last.lineno - 1]) == ("page.md", "assert x == 2")


def test_a_block_is_left_out_only_with_a_reason():
    run_blocks(("page.md", fenced("raise OSError", before="<!-- no-run: needs a GPU -->\n")))
    with pytest.raises(OSError, match="ran"):
        run_blocks(("page.md", fenced("raise OSError('ran')")))
    with pytest.raises(AssertionError, match="line 3: no-run needs a reason"):
        blocks(fenced("pass", before="<!-- no-run: -->\n"))
    with pytest.raises(AssertionError, match="a block does not end"):
        blocks("```python\npass\n")


def test_a_broken_link_is_found():
    page = PROJECT / "docs" / "page.md"
    text = "# A heading, twice\n[a](faq.md) [b](#a-heading-twice) [c](nothing.md) [d](faq.md#nothing) [e](#nothing)"
    assert broken_links(page, text) == ["nothing.md", "faq.md#nothing", "#nothing"]


def test_a_file_that_does_not_exist_is_found():
    assert wrong_files("`errors.py`, `nn/init.py`, `nn/nothing.py` and `cpu_*.cpp`") == ["nn/nothing.py"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (fenced("jumpout-export check-bn a:b --data d.npz --imgs 3", "console"), "--imgs"),
        (fenced("jumpout-export check-bn a:b", "bash"), "data"),
        (fenced("jumpout-export check-bn a:b --data d.npz --samples many", ""), "many"),
        ("    jumpout-export exports a:b m.onnx\n", "no such command"),
        ("say `jumpout-export exports`", "no such command"),
        ("say `jumpout-export inspect --opset`", "no option --opset"),
        ("with `--opsets 18`", "no command has --opsets"),
    ],
)
def test_a_command_or_option_that_does_not_exist_is_found(text, problem):
    (found,) = wrong_commands(text)
    assert problem in found


def test_a_command_that_exists_is_let_through():
    text = fenced("jumpout-export export a:b m.onnx \\\n  --data d.npz --static  # comment", "console")
    assert wrong_commands(text + "`jumpout-export info`, `--dynamic-batch`, `-c constraints.txt`") == []


@pytest.mark.integration
def test_a_message_that_does_not_exist_is_found():
    table = "| message | do |\n|---|---|\n| `jumpout_export's compiled … is lost or` | install |\n"
    assert unknown_messages(table) == ["is lost or"]
