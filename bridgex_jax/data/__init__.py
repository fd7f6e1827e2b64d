"""Reading what the user gives: dictionaries, corpora, templates; making prompts and batches."""
