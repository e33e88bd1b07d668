"""The first layer whose result differs."""
