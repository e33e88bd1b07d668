"""An exported program as a file."""

import io

import pytest
import torch
from support.programs import exported, trained
from torch import nn


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return trained(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)))


@pytest.fixture(scope="module")
def saved(small):
    """A program from train mode as bytes of a file."""
    buffer = io.BytesIO()
    torch.export.save(exported(small, True), buffer)
    return buffer.getvalue()


@pytest.fixture
def file(tmp_path, saved):
    (tmp_path / "net.pt2").write_bytes(saved)
    return tmp_path / "net.pt2"
