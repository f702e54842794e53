"""How well scores track the truth, on results whose truth is known: the benchmark measures itself."""
