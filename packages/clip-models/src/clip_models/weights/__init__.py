"""Weights: found, fetched, read, converted to OpenCLIP's layout, checked and saved."""
