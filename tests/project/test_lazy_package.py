"""The package imports what is asked for, and what a user relies on works in whichever order things are imported."""

import copy
import multiprocessing
import pickle
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from torch import nn

import jumpout_export
from jumpout_export import Jumpout
from jumpout_export.after_import import after_import


def printed(code):
    """What a new process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.integration
def test_importing_the_package_imports_no_torch():
    assert printed("import sys, jumpout_export; print('torch' in sys.modules, jumpout_export.__version__)") == (
        f"False {version('jumpout-export')}"
    )


def test_every_public_name_is_listed_and_is_what_its_module_has():
    assert {*jumpout_export.__all__, "__version__"} <= set(dir(jumpout_export))
    assert set(jumpout_export.__all__) == set(jumpout_export._MODULES)
    for name in jumpout_export.__all__:
        assert getattr(jumpout_export, name).__module__.startswith("jumpout_export.")
    assert jumpout_export.Jumpout is Jumpout


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jumpout_export' has no attribute 'Jumpuot'"):
        jumpout_export.Jumpuot  # noqa: B018


@pytest.mark.integration
def test_a_star_import_gives_the_public_names_and_no_version_and_imports_torch():
    shown = "Jumpout.__name__, '__version__' in globals(), 'torch' in sys.modules"
    code = f"import sys; from jumpout_export import *; print({shown})"
    assert printed(code) == "Jumpout False True"


@pytest.mark.integration
def test_in_either_order_the_op_is_there_and_a_program_that_holds_it_is_loaded(tmp_path):
    path = tmp_path / "training.pt2"
    net = nn.Sequential(nn.Linear(4, 4), Jumpout(relu=True)).train()
    torch.export.save(torch.export.export(net, (torch.ones(2, 4),)), path)
    code = f"print(torch.ops.jumpout.forward, torch.export.load({str(path)!r}).module()(torch.ones(2, 4)).shape)"
    compiled = "print(torch.compile(jumpout_export.Jumpout(), backend='eager', fullgraph=True)(torch.ones(2, 4)).shape)"
    assert printed(f"import torch, jumpout_export; {code}") == "jumpout.forward torch.Size([2, 4])"
    both = printed(f"import jumpout_export, torch; {code}; {compiled}").splitlines()
    assert both == ["jumpout.forward torch.Size([2, 4])", "torch.Size([2, 4])"]
    with pytest.raises(AssertionError, match="jumpout"):
        printed(f"import torch; {code}")


@pytest.mark.integration
def test_a_pickled_module_is_read_without_any_import(tmp_path):
    torch.save(nn.Sequential(nn.Linear(4, 4), Jumpout(relu=True)), tmp_path / "net.pt")
    code = f"import torch; print(torch.load({str(tmp_path / 'net.pt')!r}, weights_only=False)(torch.ones(2, 4)).shape)"
    assert printed(code) == "torch.Size([2, 4])"


def test_modules_are_copied_and_pickled():
    for other in (copy.deepcopy(Jumpout(sigma=0.2)), pickle.loads(pickle.dumps(Jumpout(sigma=0.2)))):
        assert repr(other) == repr(Jumpout(sigma=0.2))
        assert other(torch.ones(3)).shape == (3,)


def shape_in_another_process(net, queue):
    queue.put(tuple(net(torch.ones(2, 4)).shape))


@pytest.mark.integration
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_runs_a_module_that_it_is_given(method):
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    worker = context.Process(target=shape_in_another_process, args=(nn.Sequential(Jumpout()), queue))
    worker.start()
    assert queue.get() == (2, 4)
    worker.join()
    assert worker.exitcode == 0


@pytest.fixture
def late(tmp_path, monkeypatch):
    """A module that can be imported and is not; what was done after it; and the finders as they were."""
    (tmp_path / "late_module.py").write_text("import done_before\ndone_before.said.append('imported')\n")
    (tmp_path / "done_before.py").write_text("said = []\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    for name in ("late_module", "done_before"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import done_before

    yield done_before.said
    for name in ("late_module", "done_before"):
        sys.modules.pop(name, None)


def test_what_is_to_be_done_after_an_import_is_done_once_and_after_it(late):
    finders = [*sys.meta_path]
    after_import("late_module", lambda: late.append("done"))
    import importlib.util

    spec = importlib.util.find_spec("late_module")  # asks whether it is there
    assert late == []
    import late_module

    assert late == ["imported", "done"]
    assert sys.meta_path == finders
    assert type(late_module.__spec__.loader) is type(spec.loader)
    importlib.reload(late_module)
    assert late == ["imported", "done", "imported"]


def test_it_is_done_at_once_for_what_was_imported_before():
    done = []
    after_import("sys", lambda: done.append(1))
    assert done == [1]


def test_it_waits_for_an_import_that_fails_to_succeed(late, tmp_path):
    (tmp_path / "broken_module.py").write_text("raise ImportError('not today')\n")
    done = []
    after_import("broken_module", lambda: done.append(1))
    with pytest.raises(ImportError, match="not today"):
        __import__("broken_module")
    assert done == []
    (tmp_path / "broken_module.py").write_text("works = 'the size of the file is another now'\n")
    __import__("broken_module")
    assert done == [1]
    del sys.modules["broken_module"]


def test_a_module_that_is_not_there_stays_so(late):
    after_import("no_such_module", lambda: late.append("done"))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        __import__("no_such_module")
    assert late == []
