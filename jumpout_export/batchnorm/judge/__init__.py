"""From moments to estimates with error bars, verdicts, causes and sentences."""
