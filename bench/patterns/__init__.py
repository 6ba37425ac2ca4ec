"""Patterns of messaging, measured: what one client does to another, where the workloads ask how fast one pair is."""
