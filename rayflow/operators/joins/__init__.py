"""Joins: what two streams say about the same key.

`columns` is what all of them make of two rows, `sides` the state of those that keep rows of both inputs by key,
`stored` both as parts of a snapshot, `times` the event time of both inputs in one unit.
`regular` joins without regard to time, `interval` rows whose times lie close, `temporal` a row with the version
that was valid at its time, `broadcast` with a table that every subtask has. Input port 0 is the left side, 1 the
right one. Null keys match nothing.
"""
