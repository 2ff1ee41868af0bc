"""nstjax: neural style transfer in JAX and Flax.

Importing this package does no work; import the module you need, for example `from nstjax import losses`.
"""

__version__ = "0.1.0"
