"""jaxseg: image segmentation and style-based generation as pure functions in JAX and Flax Linen."""
