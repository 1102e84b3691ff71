"""Memory of Arrow's pool as NumPy arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from rayflow.batch.memory import empty


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.float64])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_an_array_is_writable_and_becomes_a_column_without_a_copy(dtype: type, count: int) -> None:
    array = empty(count, dtype)
    array[:] = 7
    column = pa.array(array)
    assert column.to_pylist() == [7] * count
    assert count == 0 or column.buffers()[1].address == array.ctypes.data
