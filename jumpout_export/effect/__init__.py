"""The statistics of a paired comparison of outputs: the same samples before and after a change."""
