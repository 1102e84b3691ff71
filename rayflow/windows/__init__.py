"""Operators over windows.

| module | what |
|---|---|
| `bounds`, `row_times`, `clock_times` | what all kinds share: bounds, times of rows, late rows |
| `time_windows` | what tumbling and sliding windows share; `making` chooses among the ways to keep them: |
| `pane_windows` | a pane per window |
| `running_windows`, `running`, `slice_table` | a pane per slice, and results that are kept up as the window moves on |
| `sliced_windows`, `slice_tree` | a pane per slice, merged for each window |
| `spilled` | panes that outgrow memory, as sorted runs on disk |
| `parameters` | what time windows are given by, and what windows the state in a snapshot is of |
| `grid`, `panes`, `updates` | the arithmetic of slices; state by key and stretch of time; results that come again |
| `session`, `count`, `global_window` | windows that their rows make, over `session_table` and `count_table` |
| `arrivals` | what count and global windows show as bounds |
| `process` | hands the rows of whole windows, of whatever kind, to a function |
| `joins` | pairs the rows of two inputs by window |
| `window_kernels`, `slice_kernels`, `slice_table_kernels`, `running_kernels` | compiled loops |
"""
