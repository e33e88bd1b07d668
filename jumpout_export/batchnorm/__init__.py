"""Checks BatchNorm between training and serving, fixes it, and watches it during training."""
