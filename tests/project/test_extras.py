"""A missing optional package is named together with the command that installs it."""

import re
import sys
import tomllib

import pytest
from support.project import PROJECT

from jumpout_export import extras
from jumpout_export.extras import pip_line, require, require_onnx

ONNX = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["onnx"]


def test_what_is_there_is_no_error():
    require("json", "report", "never said: ")


def test_what_is_missing_is_named_with_its_reason_and_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "json", None)
    with pytest.raises(ImportError) as error:
        require("json", "report", "pages need json ({error}): ")
    assert str(error.value).startswith("pages need json (import of json halted")
    assert str(error.value).endswith("): pip install 'jumpout-export[report]'")


def test_a_missing_onnx_names_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        ImportError, match=r"onnxscript cannot be imported \(.*\); install it with pip install"
    ) as error:
        require_onnx()
    assert error.value.name == "onnxscript"
    assert str(error.value).endswith(pip_line("onnx"))


@pytest.mark.parametrize("requirement", ONNX)
def test_a_package_that_is_older_than_declared_says_what_is_installed_and_what_is_needed(requirement, monkeypatch):
    name, needed = requirement.split(">=")
    module = pytest.importorskip(name.replace("-", "_"))
    for version in ("0.0.9", needed.rsplit(".", 1)[0] + ".dev1" if needed.count(".") > 1 else "0.0.9.dev1"):
        monkeypatch.setattr(module, "__version__", version)
        text = (
            f"{module.__name__} {version} is installed, {needed} or newer is needed; upgrade it with {pip_line('onnx')}"
        )
        with pytest.raises(ImportError, match=f"^{re.escape(text)}$"):
            require_onnx(module.__name__)
    for version in (needed, f"{needed}.dev20251031", f"{needed}+cpu", "99.0", "unknown"):
        monkeypatch.setattr(module, "__version__", version)
        require_onnx(module.__name__)


def test_what_is_needed_is_what_pyproject_declares():
    declared = dict(requirement.split(">=") for requirement in ONNX)
    assert {name: extras._oldest()[name] for name in declared} == declared, "install the package again"


def test_a_checkout_that_is_not_installed_declares_nothing(monkeypatch):
    def requires(name):
        raise extras.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras.metadata, "requires", requires)
    assert extras._oldest.__wrapped__() == {}
