"""Prompts, token ids and their embedding. Knows strings and arrays of ids, nothing of images.

`prompts` writes the sentences, `tokenizer` turns them into ids, `t5` embeds them. Letters in
shapes: `K` prompts, `T` tokens, `H` attention heads.
"""
