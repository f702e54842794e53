"""Speed of the sweep, beside one picture at a time and bare model calls."""
