"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn: real data without a download."""

from __future__ import annotations

import numpy as np

from swarm.data.errors import DataError
from swarm.data.images import Images, checked


def read_digits() -> Images:
    """Return the digits, their 17 shades of grey spread over 0 to 240. Raises DataError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed; install the extra `digits`: pip install '.[digits]'"
        ) from error
    found = load_digits()
    return checked((found.images * 15).astype(np.uint8), found.target, "the digits")
