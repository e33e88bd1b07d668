"""The rooms of the package: who may know whom, how large a room may be, and that importing the package stays light."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys

import pytest
from support.project import PROJECT

PACKAGE = PROJECT / "jumpout_export"

GROUND = {
    "errors",
    "display",
    "log",
    "progress",
    "exit_codes",
    "after_import",
    "signals",
    "streams",
    "supervisor",
    "text",
    "extras",
    "report",
    "environment",
    "disk",
    "tolerances",
}
DRAWING = {"render", "render/plots"}
MEASURE = {"batchnorm/measure"}
FOLD = {"fold/network", "fold/file"}
# From the ground up. A room is a file of the package's top level, or a folder; it may import what its row names, which
# stands above that row here, and its own files. docs/architecture.md says what is in each.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "exit_codes": set(),
    "after_import": set(),
    "signals": set(),
    "streams": set(),
    "supervisor": {"exit_codes"},
    "text": set(),
    "extras": set(),
    "display": set(),
    "log": set(),
    "progress": set(),
    "report": {"text", "display"},
    "environment": set(),
    "disk": {"errors", "signals", "text"},
    "tolerances": set(),
    "render": {"report", "text"},
    "render/plots": {"render", "report", "extras"},
    "render/sections": {"report", "text", *DRAWING},
    "render/writers": {"report", "text", "extras", "disk", "render/sections", *DRAWING},
    "ops": {"errors"},
    "model": GROUND,
    "nn": {"ops", "model", "errors", "text"},
    "loading": {"model", "errors", "text", "disk", "extras"},
    "program": {"model", *GROUND},
    "onnxfile": GROUND,
    "onnxfile/flow": {"onnxfile", *GROUND},
    "runtime": {"onnxfile", *GROUND},
    "filenetwork": {"model", "onnxfile", *GROUND},
    "effect": GROUND,
    "batchnorm/measure": {"model", *GROUND},
    "batchnorm/advice": {"nn", "model", *MEASURE, *GROUND},
    "batchnorm/judge": {"model", "batchnorm/advice", *MEASURE, *GROUND},
    # The monitor keeps a report, `MonitorHistory`, and its public `plot` hands it to what draws it.
    "batchnorm": {
        *("nn", "model", "effect", "render/plots", "batchnorm/advice", "batchnorm/judge"),
        *MEASURE,
        *GROUND,
    },
    "integrations": {"model", "batchnorm", *GROUND},
    "fold/network": {"nn", "model", "program", *GROUND},
    "fold/file": {"onnxfile", "runtime", *GROUND},
    "verify/values": {"model", "fold/network", *GROUND},
    "verify/constants": {"model", "onnxfile", *GROUND},
    "verify/divergence": {"model", "onnxfile", "runtime", "verify/values", "verify/constants", *GROUND},
    "quantized": {"model", "effect", "onnxfile", "runtime", "verify/constants", *GROUND},
    "verify": {
        *("model", "onnxfile", "onnxfile/flow", "runtime", "filenetwork", "quantized"),
        *("verify/values", "verify/constants", "verify/divergence"),
        *FOLD,
        *GROUND,
    },
    "verify/noise": {"model", "onnxfile", "runtime", "verify", "verify/values", *FOLD, *GROUND},
    "export": {
        *("model", "program", "onnxfile", "runtime", "quantized"),
        *("verify", "verify/values", "verify/noise", "fold/network"),
        *GROUND,
    },
    "demo": {"loading", "model", "nn", "batchnorm", "export", *GROUND},
    "attest": {"render", "onnxfile", *GROUND},
    "cli": {
        "demo",
        "attest",
        *("render", "ops", "model", "loading", "program", "runtime", "filenetwork", "batchnorm", "verify", "export"),
        *("fold/file", "quantized"),
        *GROUND,
    },
    "testing": {"render", "batchnorm", "verify", *GROUND},
    "pytest_plugin": {"testing", "render"},
    "__main__": {"cli", "exit_codes", "signals", "streams", "supervisor"},
}
NO_TORCH = GROUND | {
    "attest",
    "render",
    "render/plots",
    "render/sections",
    "render/writers",
    "onnxfile",
    "onnxfile/flow",
}
NO_TORCH -= {"tolerances"}  # limits of tensors
MOST_OF_THE_PACKAGE = 0.22
MOST_FILES = 16
MOST_FLOORS = 6
MOST_LINES = 440
REASON = "Over 300 lines because"


TOPS = ("jumpout_export", "tests", "tools", "examples", "benchmarks", "experiments")
PYTHON_FILES = [file.relative_to(PROJECT).as_posix() for top in TOPS for file in (PROJECT / top).rglob("*.py")]


def module_of(file) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    """The folder of a module, or the file itself at the top level."""
    file = SOURCES[module]
    folder = file.relative_to(PACKAGE).parent.as_posix()
    return module if folder == "." else folder


def imported(source: str) -> set[str]:
    """Every name that the source imports anywhere, with its module; one of this package without the package's name."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("jumpout_export.") for name in names}


@functools.cache
def own_modules(source: str) -> set[str]:
    """The modules of this package among them."""
    names = imported(source)
    return {name if name in SOURCES else name.rpartition(".")[0] for name in names} & set(SOURCES)


def violations(room: str, source: str) -> list[str]:
    found = [
        f"{room} imports {target}" for target in own_modules(source) if room_of(target) not in {room, *ROOMS[room]}
    ]
    if room in NO_TORCH and any(name.split(".")[0] == "torch" for name in imported(source)):
        found.append(f"{room} imports torch")
    return found


def public_only(file) -> bool:
    """Whether the file is an `__init__.py` that names what its folder, or what lies in it, gives to others."""
    return file.name == "__init__.py"


def test_the_table_points_down_only():
    rooms = list(ROOMS)
    for index, room in enumerate(rooms):
        assert ROOMS[room] <= set(rooms[:index]) | {"_C"}, room


def test_the_page_says_what_every_room_answers():
    page = (PROJECT / "docs" / "architecture.md").read_text()
    tops = {room.split("/")[0] for room in ROOMS} - {"__main__"}
    rows = {top: f"[{top}/](" if (PACKAGE / top).is_dir() else f"[{top}.py](" for top in tops}
    assert [top for top, link in rows.items() if link not in page] == []


@pytest.mark.parametrize("room", sorted({room_of(name) for name, file in SOURCES.items() if not public_only(file)}))
def test_imports_point_down(room):
    assert room in ROOMS, f"{room} is in no row of this test's table"
    for module in (name for name, file in SOURCES.items() if room_of(name) == room and not public_only(file)):
        assert violations(room, SOURCES[module].read_text()) == [], module


def test_the_table_knows_no_more_than_is_needed():
    """Ground files and neighbours are free; every other arrow in the table is one that the code has."""
    used = {
        (room_of(name), room_of(target))
        for name, file in SOURCES.items()
        if not public_only(file)
        for target in own_modules(file.read_text())
    }
    assert {(room, target) for room, targets in ROOMS.items() for target in targets - GROUND} <= used


@pytest.mark.parametrize("module", [name for name, file in SOURCES.items() if public_only(file) and name != "__init__"])
def test_a_folder_gives_what_lies_in_it(module):
    """A folder's `__init__.py` has no logic and takes names from below its own folder only."""
    source = SOURCES[module].read_text()
    assert all(name.startswith(f"{module}.") for name in own_modules(source))
    allowed = ast.Expr | ast.ImportFrom | ast.Assign
    assert all(isinstance(node, allowed) for node in ast.parse(source).body)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("nn", "from jumpout_export.fold.network.folded import fold_model"),
        ("export", "from jumpout_export.batchnorm.check import check_batchnorm"),
        ("batchnorm", "from jumpout_export.verify import verify"),
        ("report", "import torch"),
        ("ops", "def f():\n    from jumpout_export.nn import modules"),
        ("errors", "from jumpout_export.report import Check"),
        ("onnxfile", "from jumpout_export.runtime.session import open_session"),
        ("verify", "from jumpout_export.verify.noise.on_purpose import verify_random"),
    ],
)
def test_a_wrong_import_is_found(room, source):
    assert violations(room, source) != []


@functools.cache
def lines_of(module: str) -> int:
    return SOURCES[module].read_text().count("\n")


def test_no_folder_holds_more_than_a_fifth_of_the_package():
    total = sum(map(lines_of, SOURCES))
    folders = {module.split(".")[0] for module in SOURCES if "/" in SOURCES[module].relative_to(PACKAGE).as_posix()}
    shares = {top: sum(lines_of(m) for m in SOURCES if m.split(".")[0] == top) / total for top in folders}
    assert {top: share for top, share in shares.items() if share > MOST_OF_THE_PACKAGE} == {}


def floors(modules: set[str]) -> int:
    """The length of the longest chain of imports among the modules; a cycle is an error."""

    def above(module: str, below: tuple[str, ...]) -> int:
        assert module not in below, f"imports go round: {' -> '.join((*below, module))}"
        chain = (own_modules(SOURCES[module].read_text()) & modules) - {module}
        return 1 + max((above(target, (*below, module)) for target in chain), default=0)

    return max(above(module, ()) for module in modules)


@pytest.mark.parametrize("room", [room for room in ROOMS if (PACKAGE / room).is_dir()])
def test_a_folder_stays_small_enough_to_be_read(room):
    inside = {name for name, file in SOURCES.items() if room_of(name) == room and not public_only(file)}
    assert len(inside) <= MOST_FILES
    assert floors(inside) <= MOST_FLOORS


def test_a_long_file_says_why():
    long = {module: lines_of(module) for module in SOURCES if lines_of(module) > MOST_LINES}
    assert [
        module for module in long if REASON not in (ast.get_docstring(ast.parse(SOURCES[module].read_text())) or "")
    ] == []


def stale_paths(text: str) -> list[str]:
    """The files that a comment or docstring names by folder and name, and that are nowhere below the package."""
    names = re.findall(r"[`(](?:jumpout_export/)?((?:\w+/)+\w+\.py)", text)
    return [name for name in names if not any(f"/{path}".endswith(f"/{name}") for path in PYTHON_FILES)]


def test_files_that_the_sources_name_exist():
    assert {m: stale for m, file in SOURCES.items() if (stale := stale_paths(file.read_text()))} == {}


def test_a_stale_path_is_found():
    assert stale_paths("see `export/nothing.py` and `fold/network/folded.py`") == ["export/nothing.py"]


def test_only_ops_knows_the_compiled_module():
    assert {name for name, file in SOURCES.items() if "_C" in imported(file.read_text())} == {"ops"}


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"onnx", "onnx_ir", "onnxruntime", "onnxscript", "matplotlib", "jinja2", "sklearn", "PIL", "typer", "rich"}
HEAVY |= {"lightning", "pytorch_lightning", "transformers", "securesystemslib", "cryptography", "in_toto_attestation"}


@pytest.mark.integration
def test_importing_the_package_stays_light():
    assert not modules_after("import jumpout_export") & HEAVY


@pytest.mark.integration
def test_a_heavy_import_is_found():
    assert modules_after("import jumpout_export, onnx") & HEAVY >= {"onnx"}
