"""Smaller numbers: int8 and 4-bit variants of the exported student and of the teacher LLM, each judged on ranking."""
