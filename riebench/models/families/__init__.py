"""Model families: all that holds for one architecture and not for every one.

A family covers text-to-image models of one architecture.

Imports `tasks` and what is below it, and of `models` the types in `spec` alone. `base` holds the contract, a `Family`;
`blocks` and `sizes` hold the types that it hands out, `folders` reads model folders, `tokens` holds what transformers
have in common, and `listing` lists a model's blocks. Each sub-package fills the contract for one architecture and is
listed in `riebench.registry` (`MODEL_FAMILIES`), where packages of other people can add theirs. `family_of_denoiser`
and `family_of_pipeline` (base) find the family of a model in memory.
"""
