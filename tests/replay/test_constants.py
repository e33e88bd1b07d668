"""What stands in C++ and in Python stands there alike: read from the C++ sources, without a build."""

import re
import tomllib
from pathlib import Path

import pytest
from support.project import PROJECT

from jumpout_export import exit_codes
from jumpout_export.onnxfile.manifest import FOLDER, VERSION, manifest_of
from jumpout_export.onnxfile.metadata import DATA_SHA256, PREFIX, RANDOM, TOLERANCE
from jumpout_export.onnxfile.training import RANDOM_OPERATORS
from jumpout_export.runtime.providers import PROVIDERS

SOURCES = PROJECT / "cpp" / "replay"
TEXT = r'"((?:[^"\\]|\\.)*)"'


def code(name):
    """A source without comments, which may name anything."""
    return re.sub(r"^\s*//.*$|(?<=[;,{} ]) // .*$", "", (SOURCES / name).read_text(), flags=re.MULTILINE)


def only(pattern, source):
    """What the groups of a pattern match, which must stand there once."""
    (found,) = re.findall(pattern, source)
    return found


def texts(listed):
    return re.findall(TEXT, listed)


def test_cuda_has_the_same_settings():
    source = code("session.cpp")
    keys = texts(only(r"const char\* const keys\[\] = \{([^}]*)\};", source))
    values = texts(only(r"const char\* const values\[\] = \{([^}]*)\};", source))
    assert dict(zip(keys, values, strict=True)) == PROVIDERS["cuda"].settings


def test_the_page_shows_the_same_settings():
    page = (PROJECT / "docs" / "cpp.md").read_text(encoding="utf-8")
    keys = texts(only(r"const char\* keys\[\] = \{([^}]*)\};", page))
    values = texts(only(r"const char\* values\[\] = \{([^}]*)\};", page))
    assert dict(zip(keys, values, strict=True)) == {"device_id": "0", **PROVIDERS["cuda"].settings}


def test_providers_have_the_same_names():
    rows = re.findall(
        rf"^\s*\{{{TEXT}, {TEXT}, {TEXT}, (true|false), (true|false)\}},$", code("provider.cpp"), re.MULTILINE
    )
    assert [(option, name, fallback == "true", repeat == "true") for option, name, _, fallback, repeat in rows] == [
        (one.name, one.onnxruntime_name, one.is_fallback, one.must_repeat)
        for one in PROVIDERS.values()
        if one.name != "openvino"  # the programs in C++ run on cpu and cuda (docs/cpp.md)
    ]


def test_the_metadata_has_the_same_keys():
    keys = {text for file in SOURCES.glob("*.*") if file.suffix in (".cpp", ".h") for text in texts(code(file.name))}
    assert {key for key in keys if "jumpout_export" in key} == {DATA_SHA256, RANDOM, TOLERANCE, f"{PREFIX}version"}


def test_golden_data_lies_in_the_same_folder():
    assert only(rf"constexpr char kPrefix\[\] = {TEXT};", code("golden.cpp")) + "0" == FOLDER


def test_the_same_operators_draw_random_numbers():
    listed = only(r"constexpr std::array<std::string_view, \d+> kRandom = \{([^}]*)\};", code("shapes.cpp"))
    assert set(texts(listed)) == RANDOM_OPERATORS
    assert len(texts(listed)) == len(RANDOM_OPERATORS)


def test_verdicts_end_with_the_same_exit_codes():
    listed = only(r"enum class Problem \{([^}]*)\};", code("include/jumpout/error.h"))
    listed += only(r"constexpr int (kPassed = \d+);", code("errors.h"))
    assert {name: int(number) for name, number in re.findall(r"k(\w+) = (\d+)", listed)} == {
        "Passed": exit_codes.PASSED,
        "Failed": exit_codes.FAILED,
        "Unusable": exit_codes.WRONG_USAGE,
        "NotVerifiable": exit_codes.NOT_VERIFIED,
    }


@pytest.mark.parametrize(
    "path",
    sorted(
        {
            (file.name, path)
            for file in SOURCES.rglob("*.*")
            if file.suffix in (".cpp", ".h")
            for path in re.findall(r"(?<![<\w/])[\w/]+\.(?:py|md|json|cpp|h)\b", file.read_text())
            if "/" in path
        }
    ),
    ids="{0[0]} {0[1]}".format,
)
def test_files_that_the_sources_name_exist(path):
    assert any((root / path[1]).exists() for root in (PROJECT, SOURCES, SOURCES / "include"))


def test_the_library_has_the_version_of_the_package():
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert only(r"project\(jumpout_replay VERSION (\S+) ", (SOURCES / "CMakeLists.txt").read_text()) == version


def test_the_manifest_has_the_same_version_and_name():
    source = code("manifest.cpp")
    assert only(rf"constexpr char kVersion\[\] = {TEXT};", source) == str(VERSION)
    assert only(rf"replace_extension\({TEXT}\)", source) == manifest_of(Path("m.onnx")).name.removeprefix("m")


def test_what_a_system_has_lies_in_one_file_for_each():
    alone = {"platform_posix.cpp", "platform_windows.cpp"}
    for file in [file for file in SOURCES.rglob("*.*") if file.suffix in (".cpp", ".h") and file.name not in alone]:
        text = file.read_text()
        system = set(re.findall(r"#include <([\w/]+\.h)>", text)) - {"onnxruntime_cxx_api.h"}
        assert system == set(), file.name
        assert not re.search(r"/proc/|mkdtemp|\bssize_t\b|__builtin|#if(def)? *.*(_WIN32|__linux__|__APPLE__)", text), (
            file.name
        )
