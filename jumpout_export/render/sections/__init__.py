"""The parts of a document, each from a report."""
