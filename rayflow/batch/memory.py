"""Memory for columns that are made and given up batch after batch.

NumPy takes it from malloc, which gives pieces of a batch's size back to the system as soon as they are freed, and gets
them again page by page, zeroed: twenty times what it costs to write a column. Arrow's pool keeps them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def empty(count: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """As `numpy.empty` in one dimension, with memory of Arrow's pool."""
    of = np.dtype(dtype)
    return np.frombuffer(pa.allocate_buffer(count * of.itemsize), of)
