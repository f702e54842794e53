"""How fast the sweep is, beside one picture at a time and beside bare model calls."""
