"""The GPU check's program, on the CPU and with small networks: only the CUDA branch needs a GPU."""

import os
import subprocess
import sys

import pytest
import torch
from support.project import PROJECT
from torch import nn

pytestmark = pytest.mark.integration

BENCHMARKS = PROJECT / "benchmarks"
TOOLS = PROJECT / "tools"


@pytest.fixture
def gpu_verify(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_verify

    return gpu_verify


def small(gpu_verify):
    blocks = [gpu_verify.Block(3, 4, 2), gpu_verify.Block(4, 4, 1)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6))


def test_a_network_is_proven_in_both_dtypes_and_timed(gpu_verify, monkeypatch):
    monkeypatch.setattr(gpu_verify, "BATCHES", (1, 5))
    networks = {"small": (small(gpu_verify), torch.rand(4, 3, 8, 8))}
    rows = gpu_verify.measure(networks, "cpu", 0.01, compiled=False)["small"]
    assert rows.keys() == {"float32", "float16"}
    for row in rows.values():
        assert row["proof"]["passed"], row["proof"]["failed"]
        assert row["proof"]["providers"] == {"cpu": {"verdict": "pass", "reason": ""}}
        assert 0 < row["proof"]["largest_share_of_limit"] <= 1
        assert row["milliseconds"].keys() == {1, 5}
        for times in row["milliseconds"].values():
            assert times.keys() == {"PyTorch eager", "ONNX Runtime"}
            assert all(0 < value["min"] <= value["median"] for value in times.values())


def test_what_the_budget_has_no_time_for_is_proven_and_not_timed(gpu_verify, monkeypatch, capsys):
    monkeypatch.setattr(gpu_verify, "BATCHES", (1,))
    networks = {"small": (small(gpu_verify), torch.rand(4, 3, 8, 8))}
    rows = gpu_verify.measure(networks, "cpu", 0.01, compiled=False, until=0)["small"]
    for row in rows.values():
        assert row["proof"]["passed"]
        assert row["milliseconds"] == {}
    assert "small float16, batch 1: not timed, the budget is spent" in capsys.readouterr().out


def pieces(*arguments):
    command = [str(word) for word in (TOOLS / "wheel_pieces.sh", *arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_wheels_are_split_and_joined_and_a_broken_piece_is_found(tmp_path):
    (tmp_path / "wheels").mkdir()
    contents = {"large-1.whl": os.urandom(2_500_000), "small-2.whl": b"small"}
    for name, content in contents.items():
        (tmp_path / "wheels" / name).write_bytes(content)
    assert pieces("split", tmp_path / "wheels", tmp_path / "pieces", 1).returncode == 0
    assert max(file.stat().st_size for file in (tmp_path / "pieces").iterdir()) == 1 << 20
    assert pieces("join", tmp_path / "pieces", tmp_path / "joined").returncode == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "joined").iterdir()} == contents

    (tmp_path / "pieces" / "large-1.whl.part001").write_bytes(b"cut short")
    done = pieces("join", tmp_path / "pieces", tmp_path / "broken")
    assert done.returncode == 1
    assert "are not whole; copy them again" in done.stderr
    assert pieces("joint").returncode == 2


def test_a_function_that_computes_something_else_is_not_timed(gpu_verify, tmp_path):
    network = small(gpu_verify).eval()
    images = torch.rand(2, 3, 8, 8)
    assert gpu_verify.prove(network, images, tmp_path / "m.onnx", torch.float32, "cpu")
    with torch.no_grad():
        network[-1].bias += 1
    with pytest.raises(SystemExit, match=r"ONNX Runtime is off by .* of the largest output"):
        gpu_verify.latencies(network, tmp_path / "m.onnx", images, "cpu", 0.01, compiled=False)


def test_a_resnet18_has_the_weights_it_should(gpu_verify):
    batchnorm_of_shortcuts = 2 * (128 + 256 + 512)  # torchvision's network has them, this one does not
    network = gpu_verify.resnet18().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_689_512 - batchnorm_of_shortcuts
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 1000)


def without_gpu(*command, **environment):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable, **environment},
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_without_cuda_the_program_ends_with_3_and_one_line():
    (line,) = without_gpu(sys.executable, BENCHMARKS / "gpu_verify.py")
    assert line.startswith("not verified, cuda cannot be used here: ")


def test_without_a_gpu_nothing_is_installed():
    (line,) = without_gpu("bash", TOOLS / "gpu_verify.sh")
    assert line.startswith(f"gpu-verify: not verified: torch {torch.__version__} of ")
    assert line.endswith("sees no CUDA device")
    (line,) = without_gpu("bash", TOOLS / "gpu_verify.sh", PYTHON="no-such-python")
    assert line == "gpu-verify: not verified: there is no no-such-python"
