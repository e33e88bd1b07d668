"""The command line: one thin file per verb; behaviour lives below."""
