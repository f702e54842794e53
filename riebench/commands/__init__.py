"""The verbs of the command line, one module per group; each imports what is heavy inside its functions."""
