"""Types of arrays: any dtype where a check tells more at run time, float64 where constants are folded."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]
