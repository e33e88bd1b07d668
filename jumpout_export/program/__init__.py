"""Exported programs (`.pt2`): as networks, their sizes, and the file."""
