"""From an ONNX file with training noise to one without, with the proof."""
