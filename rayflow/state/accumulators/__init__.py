"""Columnar accumulators: the state of aggregates for many keys at once, in arrays indexed by slot.

`base` is the contract, `parts` the arrays and pools they are made of, `lanes` states that are plain numbers;
`numeric`, `extremes`, `ordered` and `collections` the aggregates; `sketches` the approximate ones, on
`objects` by slot, with `sketch_kernels`; `compensated` and `multiset` those from which rows can be taken
back, `kernels` their loops; `user_states` those that users write; `making` chooses among them; `columns`
binds a list of aggregate expressions to the columns of a stream; `slot_rows` are aggregates as rows, for keys on disk.
"""
