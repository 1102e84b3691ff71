"""TODO(layer docstring)."""
