"""The campaign that shows what the broker keeps when things go wrong: `make faults`, or `python -m faults --help`."""
