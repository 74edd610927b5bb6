"""Weights: where they lie, how they are fetched, read, converted to OpenCLIP's layout, checked and saved."""
