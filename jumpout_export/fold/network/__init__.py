"""From a network to its deterministic eval copy, with the proof."""
