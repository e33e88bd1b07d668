"""Takes training noise out: of a network, or of an ONNX file."""
