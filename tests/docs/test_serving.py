"""The examples of serving: the program of the container on a real export, and the one in C++ in plain ONNX Runtime."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from support.project import PROJECT
from torch import nn

from jumpout_export.export.publish import export_onnx
from jumpout_export.onnxfile.data import sha256_of

CONTAINER = PROJECT / "examples" / "container"
RUN_CPP = PROJECT / "examples" / "onnxruntime" / "run.cpp"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of an export with weights beside the file, and its network."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    folder.mkdir()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    assert export_onnx(network, folder / "model.onnx", torch.randn(4, 6), external_data=True)
    return folder, network


@pytest.fixture
def image(exported, tmp_path):
    """What the image of the container holds."""
    shutil.copytree(exported[0], tmp_path / "srv" / "model")
    shutil.copy(CONTAINER / "serve.py", tmp_path / "srv")
    return tmp_path / "srv"


def serve(image, *arguments):
    command = [sys.executable, "-I", image / "serve.py", image / "model" / "model.onnx", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def address(image):
    """The address of a server."""
    with serve(image, "--port", "0") as process:
        try:
            line = process.stdout.readline()
            yield f"http://127.0.0.1:{re.search(r'on port ([0-9]+)', line)[1]}/"
        finally:
            process.kill()


@pytest.mark.integration
def test_the_container_answers_as_the_network_does(exported, address):
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    body = io.BytesIO()
    np.savez(body, input=x.numpy())
    with urllib.request.urlopen(address, data=body.getvalue(), timeout=30) as answer:
        outputs = np.load(io.BytesIO(answer.read()), allow_pickle=False)
    assert outputs.files == ["output"]
    with torch.no_grad():
        np.testing.assert_allclose(outputs["output"], exported[1](x).numpy(), rtol=1e-5, atol=1e-6)
    with urllib.request.urlopen(address, timeout=30) as answer:
        served = json.load(answer)
    assert served == {"sha256": sha256_of(exported[0] / "model.onnx"), "onnxruntime": onnxruntime.__version__}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"other": np.zeros((1, 6), np.float32)}, "Required inputs"),
        ({"input": np.zeros((1, 5), np.float32)}, "invalid dimensions"),
        ({"input": np.array([{}], object)}, "Object arrays cannot be loaded"),
        (None, "a request has 1 to"),
    ],
)
def test_a_wrong_request_is_answered_with_the_reason(inputs, message, address):
    body = io.BytesIO()
    if inputs is not None:
        np.savez(body, **inputs)
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        urllib.request.urlopen(address, data=body.getvalue(), timeout=30)
    with caught.value as answer:
        assert message in answer.read().decode()


def checked(image):
    with serve(image, "--check") as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.integration
def test_an_image_is_made_of_proven_files_alone(image):
    model = image / "model" / "model.onnx"
    assert checked(image) == (0, f"{model} is the file that was proven\n", "")
    (weights,) = model.parent.glob("*.data")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert checked(image) == (
        *(1, ""),
        f"error: {weights.name} is not the file that was proven: its sha256 is not that in the manifest\n",
    )
    weights.unlink()
    code, _, err = checked(image)
    assert (code, "was proven is not known: FileNotFoundError" in err) == (1, True)
    weights.write_bytes(content)
    manifest = model.with_suffix(".manifest.json")
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(document | {"versions": {"onnxruntime": "1.0"}}))
    code, _, err = checked(image)
    assert (code, err) == (0, f"warning: verified in ONNX Runtime 1.0, this is {onnxruntime.__version__}\n")
    manifest.unlink()
    assert checked(image)[0] == 1


def test_the_image_has_the_versions_that_are_tested():
    pinned = dict(line.split("==") for line in (PROJECT / "constraints.txt").read_text().splitlines() if "==" in line)
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", (CONTAINER / "Dockerfile").read_text(), re.MULTILINE))
    assert arguments == {"ONNXRUNTIME": pinned["onnxruntime"], "NUMPY": pinned["numpy"]}


def test_the_page_shows_the_files():
    page = (PROJECT / "docs" / "container.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```dockerfile\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert shown == (CONTAINER / "Dockerfile").read_text(encoding="utf-8")
    page = (PROJECT / "docs" / "onnxruntime.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```cpp\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert shown in RUN_CPP.read_text(encoding="utf-8")


@pytest.mark.integration
def test_the_program_in_cpp_gives_what_python_gives(exported, tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++")
    headers = subprocess.run(
        [PROJECT / "tools" / "onnxruntime_headers.sh"], capture_output=True, text=True, check=False
    )
    if compiler is None or headers.returncode == 3:
        pytest.skip(f"no compiler, or no headers: {headers.stderr.strip()}")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.1.*")
    program = tmp_path / "run"
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", RUN_CPP, f"-I{headers.stdout.strip()}", library]
    done = subprocess.run([*command, "-o", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The library is linked by its soname, which the wheel has not.
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    model = exported[0] / "model.onnx"
    environment = {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([program, model], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    zeros = {"input": np.zeros((1, 6), np.float32)}
    (expected,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, zeros)
    np.testing.assert_allclose([float(line) for line in done.stdout.split()], expected[0], rtol=1e-4)
