"""Published benchmarks and data sets, brought to task files of our own schema."""
