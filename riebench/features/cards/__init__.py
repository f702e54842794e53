"""Cards of SAEs, and the stability of their features over training seeds.

`card` measures and gathers what a card states, `evidence` finds benchmark scores and the licence, `stability` compares
SAEs of several seeds. `card_text` and `stability_text` write Markdown, `plots` draws, and `output` makes the files.
"""
