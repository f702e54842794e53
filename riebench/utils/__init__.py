"""General tools that know nothing of tasks, models or runs.

This package imports nothing of riebench but the root modules `errors`, `registry` and `blocks`. `files` writes files
atomically (`write_atomic`) and hashes them (`content_digest`), `yaml_files` reads YAML strictly (`load_yaml`,
`validate`), `locks` keeps two writers of a folder apart (`whole_lock`, `shard_lock`), `hub` fetches files of the
Hugging Face Hub (`fetch`, `offline_mode`), `machine` reports devices, memory and disk (`pick_device`, `free_ram`),
`images` opens and encodes pictures (`open_image`, `read_image`, `encode_png`), `weights` inspects safetensors files
(`tensor_shapes`), `terminal` prints (`print_line`, `print_table`), `markup` writes Markdown, CSV and LaTeX tables
(`markdown_table`, `csv_text`, `latex_table`), and `plots` gives figures one style and their files reproducible bytes
(`plot_style`, `figure_bytes`).
"""
