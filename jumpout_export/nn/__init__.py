"""Training: the jumpout layer, its reference, initialisation, and what draws random numbers."""
