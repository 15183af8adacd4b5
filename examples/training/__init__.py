"""One script per model family; each also runs alone, e.g. `python examples/training/iris.py --out /tmp/models`."""
