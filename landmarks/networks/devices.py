"""What Keras' back end computes on."""

from functools import cache

import keras


@cache
def accelerated() -> bool:
    """Whether there is a GPU or a TPU, and the back end uses it."""
    if keras.backend.backend() == "torch":  # whose devices keras.distribution does not know
        import torch

        return torch.cuda.is_available()
    return not keras.distribution.list_devices()[0].lower().startswith("cpu")
