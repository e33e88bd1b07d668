"""The file's constants against the weights and what the model makes of them."""
