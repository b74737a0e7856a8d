"""The temperature at which softmax weights are probabilities (temperature scaling; Guo et al. 2017, section 4.2)."""

from __future__ import annotations

import numpy as np

from retrieval_service.strategies.examples import Float64Array, IntArray

#: For catalogues that have nothing to fit a temperature to.
DEFAULT_TEMPERATURE = 0.05
_TEMPERATURES = np.geomspace(1e-3, 10.0, 401)  # steps of 2.3 %


def fitted_temperature(similarities: Float64Array, truth: IntArray) -> float:
    """Return the T that minimises the mean of -log softmax(s / T)[right], for similarities [n, adapters], truth [n]."""
    shifted = similarities - similarities.max(axis=1, keepdims=True)
    right = shifted[np.arange(len(truth)), truth]
    losses = [
        float(np.mean(np.log(np.exp(shifted / temperature).sum(axis=1)) - right / temperature))
        for temperature in _TEMPERATURES.tolist()
    ]
    return float(_TEMPERATURES[int(np.argmin(losses))])
