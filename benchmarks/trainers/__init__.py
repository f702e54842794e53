"""Our SAE trainer beside that of the dictionary_learning library, on the same activations."""
