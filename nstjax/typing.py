"""Names for the arrays that the library passes on, for its signatures. Images are sRGB in [0, 1]."""

import jax
import numpy as np
from jaxtyping import Float

Array = jax.Array | np.ndarray
Image = Float[Array, "_ _ 3"]  # height, width, channels
Mask = Float[Array, "_ _"]  # 1 is inside, 0 outside
Images = Float[Array, "_ _ _ 3"]  # several of one shape
