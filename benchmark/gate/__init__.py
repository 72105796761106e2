"""The latency gate: is this revision slower than that one? Interleaved pairs of fresh processes, never absolute times."""
