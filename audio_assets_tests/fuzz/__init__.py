"""Fuzzing guided by coverage: ``make fuzz``."""
