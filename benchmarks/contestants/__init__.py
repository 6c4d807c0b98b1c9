"""One training of one library per process: ``python -m benchmarks.contestants.NAME`` prints a line of JSON."""
