"""The one door to an inference runtime: sessions, providers, where nodes ran, limits."""
