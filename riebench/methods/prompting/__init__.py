"""Methods that edit by the prompt alone.

`mixtures` reads two prompts in part, `prompt_to_prompt` injects attention of the source run, and `text_direction` adds
a direction to the prompt's embeddings.
"""
