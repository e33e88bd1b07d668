"""Is the file the model: inspects a saved file and compares it with PyTorch."""
