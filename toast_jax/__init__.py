"""TOAST: transfer learning by top-down attention steering (arXiv 2305.15542), in JAX."""

__version__ = "0.1.0"
