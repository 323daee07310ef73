"""The files in which a kernel's machine code is kept between processes."""

from __future__ import annotations

import contextlib
from pickle import UnpicklingError
from typing import Any

from numba.core.caching import FunctionCache


class KeptCode(FunctionCache):
    """As numba's; but a file that is damaged (power was lost as it was written) or cannot be written (the disk is full) costs the time to
    compile, not this process and every one after it."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 - what damaged bytes raise may be nearly any
            with contextlib.suppress(OSError):
                self.flush()  # what is saved next begins with what is there
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(OSError, EOFError, UnpicklingError):
            super().save_overload(sig, data)


def keep_code(kernel: Any) -> None:
    """As `cache=True`, in such files. `kernel`: what `numba.njit` has made."""
    kernel._cache = KeptCode(kernel.py_func)
