"""Writes files that were proven: prepare, convert, inspect, verify, replace."""
