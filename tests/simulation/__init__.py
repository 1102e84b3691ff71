"""Deterministic simulation: whole small jobs on a virtual clock, in an order that a seed decides."""
