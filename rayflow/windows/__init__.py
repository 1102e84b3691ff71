"""Operators over windows of event time.

`panes` keeps state by key and stretch of time, and finds what a watermark closes; `tumbling` aggregates on it.
"""
