"""Planning: the stream graph that users write, the job graph that is deployed, and what follows from it.

`plan` holds the three graphs as values; `chaining` makes the second of the first, with `uids` and `unions`; `execution`
derives subtasks and channels; `describe` shows a plan, `warnings` what it warns about; `shipping` pickles a job's
functions for the processes that run them. Nothing here knows what an operator does.
"""
