"""The verdict on a quantized file: what its rounding costs, tensor by tensor and at the outputs."""
