"""The one reader of ONNX files; knows no runtime."""
