"""Proof, from a model's graph alone, that rows run together do not change each other; `proof.py` is the way in."""
