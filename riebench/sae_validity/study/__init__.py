"""The statistics of the ladder: means with replicates, order, noise and ranks, and the bars of each measure."""
