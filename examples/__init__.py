"""Seeded scripts that build the example models in models/."""
