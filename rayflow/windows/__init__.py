"""Operators over windows.

`bounds` has what all kinds of windows share; `panes` keeps state by key and stretch of time, and finds what a
watermark closes; `tumbling` aggregates on it.
"""
