"""The check of the BatchNorm statistics between training and serving, and the exact fix."""
