"""SHIP: audit, fold, convert, inspect, verify, publish."""
