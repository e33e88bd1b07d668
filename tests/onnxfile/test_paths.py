"""An absolute path is cut to its file name, whatever system it is of."""

import pytest

from jumpout_export.onnxfile.walk import without_folders


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("File /home/me/work/net.py, line 3", "File net.py, line 3"),
        (r"C:\Users\me\net.py", "net.py"),
        (r"\\host\share\net.py", "net.py"),
        ("file:/home/me/net.py", "net.py"),
        ("a/b and and/or https://onnx.ai/docs/index.html", "a/b and and/or https://onnx.ai/docs/index.html"),
        ("/one and /two/three", "/one and three"),
    ],
)
def test_paths_are_cut_and_nothing_else(text, cut):
    assert without_folders(text) == cut
