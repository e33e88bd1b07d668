"""A file whose graph C++ cannot read leaves it undecided which nodes only compute shapes, and says so."""

import onnx
import pytest
from onnx import helper

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def field_bytes(number, content):
    """A field of a protobuf message that holds bytes."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def nested(depth):
    """A model of graphs in each other: a node (1) with an attribute (5) that is a graph (6)."""
    graph = field_bytes(1, field_bytes(4, b"Relu"))
    for _ in range(depth):
        graph = field_bytes(1, field_bytes(4, b"If") + field_bytes(5, field_bytes(6, graph)))
    return field_bytes(7, graph)


GRAPH = onnx.GraphProto(node=[helper.make_node("Shape", ["x"], ["y"], name="shape")]).SerializeToString()
UNREADABLE = {
    "truncated": (field_bytes(7, GRAPH)[:-3], "the file is truncated"),
    "empty": (b"", "it holds no graph"),
    "text": (b"no model at all", "not a protobuf message"),
    "two graphs": (field_bytes(7, GRAPH) * 2, "a message is given twice"),
    "a group": (field_bytes(7, GRAPH + b"\x0b\x0c"), "not a protobuf message"),
    "a bottomless pit": (nested(5000), "its graphs lie too deep in each other"),
    "two graphs in an attribute": (
        field_bytes(7, field_bytes(1, field_bytes(5, field_bytes(6, GRAPH) * 2))),
        "a message is given twice",
    ),
}


@pytest.mark.parametrize(("content", "reason"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_graph_that_cannot_be_read_proves_nothing(replay, sanitized, tmp_path, content, reason):
    path, profile = tmp_path / "m.onnx", tmp_path / "profile.json"
    path.write_bytes(content)
    replay.write_profile(profile, ("shape", "Shape", CPU))
    done = replay.run(replay.sanitized / "replay-proof", profile, "cuda", path)
    known = f"{path}: nodes ran on the CPU, and which of them only compute shapes is not known: {reason}\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", known)
    path.write_bytes(nested(30))
    assert replay.run(replay.sanitized / "replay-proof", profile, "cuda", path).returncode == 0


def test_the_graph_is_read_only_where_it_decides(replay, sanitized, tmp_path):
    profile = replay.write_profile(tmp_path / "profile.json", ("conv", "Conv", CUDA))
    done = replay.run(replay.sanitized / "replay-proof", profile, "cuda", tmp_path / "none.onnx")
    assert (done.returncode, done.stdout) == (0, f"1 on {CUDA}\n")
