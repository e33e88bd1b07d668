"""What a test reads of a report."""


def found(report):
    """What did not pass: the note of each check by its name."""
    return {check.name: check.note for check in report.checks if check.verdict != "pass"}


def note(report, name):
    """The note of the only check of that name."""
    (text,) = [check.note for check in report.checks if check.name == name]
    return text
