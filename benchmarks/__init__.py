"""Longer measurements than the tests make: speed, crashes, strangers' files. Run from the checkout as modules."""
