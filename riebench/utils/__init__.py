"""Files, YAML, locks, the hub, the machine, images, tables and plots: what every package may use.

Imports nothing of riebench but `errors`, `registry` and `blocks`. `files` writes atomically and hashes,
`yaml_files` reads YAML strictly, `locks` keeps two writers apart, `hub` fetches from the model hub, `machine` knows
devices, memory and disk, `images` opens and encodes pictures, `markup` writes Markdown, CSV and LaTeX tables,
`plots` styles figures.
"""
