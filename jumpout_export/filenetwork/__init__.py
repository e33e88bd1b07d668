"""An ONNX file as a PyTorch network: what another file is compared with where the model is not at hand."""
