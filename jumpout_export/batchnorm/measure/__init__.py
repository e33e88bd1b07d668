"""Which layers there are, what their inputs and statistics are in each state, over the same samples."""
