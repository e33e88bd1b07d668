"""Where the project lies."""

from pathlib import Path

PROJECT = Path(__file__).parents[2]
# The Python with onnxruntime-openvino that `make providers` makes.
OPENVINO = PROJECT / "build" / "providers" / "openvino" / "bin" / "python"
