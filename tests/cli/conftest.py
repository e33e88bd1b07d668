"""A folder to run commands in."""

import sys

import numpy as np
import pytest
from support.commands import FACTORIES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "cli_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cli_factories", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 1, 8, 8)).astype(np.float32)
    np.savez("data.npz", inputs=inputs, labels=rng.integers(0, 3, 300))
    return tmp_path
