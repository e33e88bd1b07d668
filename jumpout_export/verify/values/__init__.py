"""Outputs against a float64 reference, with limits that the model itself sets."""
