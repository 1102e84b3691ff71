"""Operators over windows.

`bounds` has what all kinds of windows share; `panes` keeps state by key and stretch of time, and finds what a
watermark closes; `tumbling` aggregates on it. `joins` pairs the rows of two inputs by window.

`session`, `count` and `global_window` are windows that their rows make, over `session_table` and `count_table`,
which have their compiled loops in `window_kernels`; `arrivals` is what the latter two show as bounds. `row_times`
and `clock_times` give rows their times. `process` hands the rows of whole windows, of whatever kind, to a function.
"""
