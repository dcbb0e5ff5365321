"""Texts on their way to a model: what any plugin that reads labelled texts can use.

Files and Hugging Face data sets become rows, labels become numbers, texts become token ids. Nothing
is imported here: only the modules that need `transformers`, `tokenizers` or `datasets` import them,
and a plugin that uses one of those depends on that package itself.
"""
