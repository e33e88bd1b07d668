"""The example that is there to be copied: it reads every PGM and PPM, and gives the classes that Python gives."""

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.cmake import built, copy
from support.project import PROJECT


def test_the_example_classifies_images_as_python_does(replay, digits, tmp_path):
    import onnxruntime
    from sklearn.datasets import load_digits

    pixels = load_digits().images[:10].astype(np.uint8)  # 0 to 16
    session = onnxruntime.InferenceSession(str(digits / "model.onnx"))
    (scores,) = session.run(None, {"input": pixels[:, None].astype(np.float32) / np.float32(16)})
    for image, expected in zip(pixels, scores.argmax(1), strict=True):
        (tmp_path / "image.pgm").write_bytes(b"P5\n8 8\n16\n" + image.tobytes())
        done = replay.run(replay.classify, digits / "model.onnx", tmp_path / "image.pgm")
        assert (done.returncode, done.stdout) == (0, f"class {expected} of 10\n"), done.stderr


def pnm(magic, pixels, most):
    """A file of that format from `pixels` of (height, width, channels), with comments wherever they may be."""
    height, width, _ = pixels.shape
    header = f"{magic}# made\n#by hand # twice\n {width}\t#width\n{height}\n\n#before the largest value\n{most}\n"
    if magic in ("P2", "P3"):
        return (header + "\n".join(f"{value} # a value" for value in pixels.flatten())).encode()
    return header.encode() + pixels.astype(">u2" if most > 255 else "u1").tobytes()


@pytest.fixture(scope="module")
def brightest(replay, tmp_path_factory):
    """By number of channels, a model whose classes are the values of an image of 2 rows and 3 columns."""
    models = {}
    for channels in (1, 3):
        folder = tmp_path_factory.mktemp(f"brightest{channels}")
        golden = np.linspace(0, 1, 6 * channels, dtype=np.float32).reshape(1, -1)
        tolerance = f"cap=0.001 median=1 sizes={','.join('1' * 6 * channels)} limits={','.join('0' * 6 * channels)}"
        models[channels] = replay.crafted(folder, replay.from_array(golden), replay.from_array(golden), tolerance)
        proto = onnx.load(models[channels])
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels, 2, 3])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6 * channels])
        proto.graph.CopyFrom(helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "g", [x], [y]))
        models[channels].write_bytes(proto.SerializeToString())
        data = numpy_helper.from_array(golden.reshape(1, channels, 2, 3), "x")
        replay.write_tensor(folder / "test_data_set_0" / "input_0.pb", data)
    return models


@pytest.mark.parametrize("most", [1, 16, 255, 256, 65535])
@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
def test_every_value_of_every_format_is_where_it_belongs(replay, brightest, tmp_path, magic, most):
    channels = 3 if magic in ("P3", "P6") else 1
    file = tmp_path / "image"
    for place in range(6 * channels):
        pixels = np.zeros(6 * channels, int)
        pixels[place] = most
        pixels = pixels.reshape(channels, 2, 3).transpose(1, 2, 0)  # a file has the channels last
        file.write_bytes(pnm(magic, pixels, most))
        done = replay(brightest[channels], file, program=replay.classify)
        assert (done.returncode, done.stdout) == (0, f"class {place} of {6 * channels}\n"), done.stderr


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"P5\n8 8\n255\n" + bytes(63), "it is truncated"),
        (b"P5\n8 8\n256\n" + bytes(127), "it is truncated"),
        (b"P2\n8 8\n255\n" + b"0 " * 63, "a number is missing"),
        (b"P2\n8 8\n15\n" + b"16 " * 64, r"16 is not in [0, 15]"),
        (b"P5\n8 8\n15\n" + bytes([16] * 64), "16 is above its largest value, 15"),
        (b"P5\n8 8\n65536\n", "65536 is not in [1, 65535]"),
        (b"P5\n8 8\n0\n", "0 is not in [1, 65535]"),
        (b"P5\n99999999 99999999\n255\n", "99999999 is not in [1, 16384]"),
        (b"P5 #", "a number is missing"),
        (b"P5\n-8 8\n255\n", "-8 is not in [1, 16384]"),
        (b"P4\n8 8\n", "it does not begin with P2, P3, P5 or P6"),
        (b"", "it does not begin with"),
        (b"P6\n8 8\n255\n" + bytes(192), "float32[1,3,8,8]; the model has `input`, float32[?,1,8,8]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_example_says_what_is_wrong_with_an_image(replay, digits, tmp_path, image, reason):
    (tmp_path / "image.pgm").write_bytes(image)
    done = replay.run(replay.classify, digits / "model.onnx", tmp_path / "image.pgm")
    assert done.returncode == 1
    assert done.stderr.startswith("classify: ")
    assert reason in done.stderr


def test_the_example_serves_no_model_that_gives_other_outputs_here(replay, broken, digits, tmp_path):
    (tmp_path / "image.pgm").write_bytes(b"P5\n8 8\n16\n" + bytes(64))
    folder = Path(shutil.copytree(digits, tmp_path / "wrong"))
    file = folder / "test_data_set_0" / "output_0.pb"
    tensor = onnx.load_tensor(file)
    replay.write_tensor(file, numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
    done = replay(folder / "model.onnx", tmp_path / "image.pgm", program=replay.classify)
    assert done.returncode == 1
    assert "FAIL: 1 of 1 output beyond tolerance" in done.stderr


def test_the_example_is_built_where_it_is_copied_to(replay, digits, tmp_path):
    project = copy(PROJECT / "examples" / "cpp", tmp_path / "mine")
    built(replay, project, f"-DCMAKE_PREFIX_PATH={PROJECT / 'build' / 'prefix'}", "-DCMAKE_CXX_STANDARD=20")
    (tmp_path / "image.pgm").write_bytes(b"P2\n8 8\n16\n" + b"3 " * 64)
    command = (digits / "model.onnx", tmp_path / "image.pgm")
    mine = replay.run(project / "build" / "classify", *command, cwd="/", env={})
    assert (mine.returncode, mine.stdout) == (0, replay.run(replay.classify, *command).stdout)


def test_the_code_on_the_page_is_that_of_the_example():
    page = (PROJECT / "docs" / "cpp.md").read_text(encoding="utf-8")
    example = (PROJECT / "examples" / "cpp" / "classify.cpp").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- classify\.cpp -->\n```cpp\n(.*?)```", page, re.DOTALL)
    assert code in example


def test_the_project_on_the_page_is_the_one_that_is_built():
    page = (PROJECT / "docs" / "cpp.md").read_text(encoding="utf-8")
    folder = PROJECT / "tests" / "cpp" / "consumer"
    (cmake, main) = re.findall(r"<!-- consumer -->\n```cmake\n(.*?)```\n```cpp\n(.*?)```", page, re.DOTALL)[0]
    assert cmake == (folder / "CMakeLists.txt").read_text()
    assert main == (folder / "main.cpp").read_text()
