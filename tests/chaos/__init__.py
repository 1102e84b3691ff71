"""Faults on real clusters: tests, the soak (`python -m tests.chaos.soak`), the long run (`python -m tests.chaos`)."""
