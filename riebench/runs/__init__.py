"""Generation of a benchmark's pictures: planning, making, storing, recording.

Imports `methods` and what is below it, never `scoring`. `run_benchmark` (runner) does it all, `plan` lists the
work, `prepare` opens folders, `capture` decides what to record of activations, `masks` makes regions, `references`
serves the methods that look at other examples, `engines` spread the work over processes.
"""
