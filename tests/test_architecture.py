"""Imports point down, and importing the package stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jumpout_export"

# From design: a module may import from lower layers and from its own part, never from a sibling or from above.
LAYERS = {
    "errors": 0,
    "report": 0,
    "render": 0,
    "signals": 0,
    "ops": 1,
    "nn": 2,
    "loading": 2,
    "batchnorm": 3,
    "export": 3,
    "console": 4,
    "cli_options": 4,
    "cli_ranks": 4,
    "cli_work": 4,
    "demo": 4,
    "cli": 4,
    "cli_info": 4,
    "cli_batchnorm": 4,
    "cli_errors": 4,
}
WITHIN_LAYER = {
    ("render", "report"),
    ("render", "errors"),
    ("report", "errors"),
    ("cli", "demo"),
    ("cli", "cli_batchnorm"),
    ("cli", "cli_errors"),
    ("cli", "cli_info"),
    ("cli", "cli_options"),
    ("cli", "cli_ranks"),
    ("cli", "cli_work"),
    ("cli_batchnorm", "cli_options"),
    ("cli_batchnorm", "cli_ranks"),
    ("cli_batchnorm", "cli_work"),
    ("cli_batchnorm", "demo"),
    ("cli_errors", "cli_ranks"),
    ("cli_errors", "cli_work"),
    ("cli_info", "demo"),
    ("cli_work", "cli_ranks"),
    ("cli_work", "console"),
    ("cli_work", "demo"),
}
NO_TORCH = ("errors", "report", "render", "signals")


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_names(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(part: str, source: str) -> list[str]:
    found = []
    for name in imported_names(source):
        if name.split(".")[0] == "torch" and part in NO_TORCH:
            found.append(f"{part} imports {name}")
        if not name.startswith("jumpout_export."):
            continue
        target = name.split(".")[1]
        if target in ("_C", part):
            continue
        if target not in LAYERS:
            found.append(f"{part} imports {name}, which has no layer")
        elif LAYERS[target] >= LAYERS[part] and (part, target) not in WITHIN_LAYER:
            found.append(f"{part} imports {name}, which is not below it")
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    if file == PACKAGE / "__init__.py":
        return  # the public names, from all layers
    if file == PACKAGE / "__main__.py":
        assert {name for name in imported_names(file.read_text()) if name.startswith("jumpout_export.")} == {
            "jumpout_export.cli",
            "jumpout_export.signals.handle_signals",
        }
        return
    assert part_of(file) in LAYERS, f"{file.name} has no layer in this test"
    assert violations(part_of(file), file.read_text()) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("nn", "from jumpout_export.export.fold import fold_model"),
        ("export", "from jumpout_export.batchnorm.check import check_batchnorm"),
        ("report", "import torch"),
        ("ops", "def f():\n    from jumpout_export.nn import modules"),
        ("errors", "from jumpout_export.report import Check"),
    ],
)
def test_a_wrong_import_is_found(part, source):
    assert violations(part, source) != []


def test_only_ops_knows_the_compiled_module():
    users = {
        file.name for file in PACKAGE.rglob("*.py") if "jumpout_export._C" in str(imported_names(file.read_text()))
    }
    assert users == {"ops.py"}


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"onnx", "onnxruntime", "onnxscript", "matplotlib", "jinja2", "sklearn", "PIL", "typer", "rich"}


def test_importing_the_package_stays_light():
    assert not modules_after("import jumpout_export") & HEAVY


def test_a_heavy_import_is_found():
    assert modules_after("import jumpout_export, onnx") & HEAVY == {"onnx"}
