"""A signed statement of what a verification found, and whether the files are still those that it is about."""
