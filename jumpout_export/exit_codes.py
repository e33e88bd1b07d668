"""The exit codes of the command line; whatever else it says, these are what scripts act on."""

from __future__ import annotations

PASSED = 0
FAILED = 1  # a check failed
WRONG_USAGE = 2
NOT_VERIFIED = 3  # could not be verified here
