"""NumPy files written piece by piece, so that a column never has to fit into memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np


class ArrayFile:
    """An ``.npy`` file of known dtype and shape whose rows are appended.

    Args:
        path: where it goes.
        dtype: element type.
        shape: final shape; the first dimension counts rows.
    """

    def __init__(self, path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self.path, self.dtype, self.shape = path, np.dtype(dtype), shape
        self._rows = 0
        self._stream = path.open("wb")
        np.lib.format.write_array_header_1_0(self._stream, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape})

    def append(self, rows: np.ndarray) -> None:
        """Add ``rows`` of shape [n, ...].

        Raises:
            ValueError: another dtype (nothing is ever converted in silence) or row shape.
        """
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape[1:]:
            raise ValueError(f"{self.path.name} holds {self.dtype}{list(self.shape[1:])} rows, "
                             f"not {rows.dtype}{list(rows.shape[1:])}")
        self._stream.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def __enter__(self) -> ArrayFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stream.close()
        if error is None and self._rows != self.shape[0]:
            raise ValueError(f"{self.path.name} was to hold {self.shape[0]} rows, got {self._rows}")
