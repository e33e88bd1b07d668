"""Files that are random on purpose."""
