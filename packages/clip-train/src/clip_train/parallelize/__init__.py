"""What is applied to a model from outside: parallelism, precision, recomputation and compilation, block by block."""
