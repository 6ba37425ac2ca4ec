"""Patterns of messaging, measured: what a broker must do beside carrying messages fast. A pattern is a file here and a
line in `PATTERNS`."""
