"""The statistics of the ladder: means, order, noise, ranks, and the bars."""
