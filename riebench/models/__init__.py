"""Text-to-image models: presets, loading, placement and known families.

Imports `tasks` and what is below it. `look_up` (lookup) says what a name stands for, `load_model` (loading) loads
it, `families` holds all that is true of one architecture only, `presets` what each official model needs.
"""
