"""Weights of other libraries: their layouts told apart and brought to OpenCLIP's, and written for them."""
