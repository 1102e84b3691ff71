"""Plain values every layer may use: ids, errors, durations, sizes, configuration, source locations.

The lowest layer: it imports nothing of rayflow, and neither Arrow nor Ray.
"""
