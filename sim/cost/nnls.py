"""nnls: least squares with coefficients of at least 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loratory.errors import InputError


def nnls(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x >= 0 that minimises ||matrix @ x - target||, by Lawson and Hanson's active set (1974, chapter 23).

    ``matrix`` is (rows, columns); columns of zeros get 0. Raises `InputError` when it does not settle, which needs
    columns that are equal to rounding: drop one of them.
    """
    norms = np.linalg.norm(matrix, axis=0)
    scale = np.where(norms > 0, norms, 1.0)
    a = matrix / scale
    columns = a.shape[1]
    x = np.zeros(columns)
    passive = np.zeros(columns, dtype=bool)
    blocked = norms == 0
    tolerance = 1e-10 * max(1.0, float(np.abs(a.T @ target).max(initial=0.0)))
    for _ in range(30 * columns + 30):
        gradient = a.T @ (target - a @ x)
        gradient[passive | blocked] = -np.inf
        if columns == 0 or gradient.max() <= tolerance:
            return x / scale
        passive[int(gradient.argmax())] = True
        while True:
            solution = np.zeros(columns)
            solution[passive] = np.linalg.lstsq(a[:, passive], target, rcond=None)[0]
            negative = passive & (solution <= 0)
            if not negative.any():
                x = solution
                break
            step = float(np.min(x[negative] / (x[negative] - solution[negative] + 1e-300)))
            x = x + step * (solution - x)
            passive &= x > 1e-14 * max(1.0, float(x.max()))
            x[~passive] = 0.0
    raise InputError("the profile's steps do not determine a fit: measure more varied batches")
