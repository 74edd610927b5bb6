"""What a run costs before it starts: parameters, memory, FLOPs, hours. `clip-train fit --dry-run` prints it."""
