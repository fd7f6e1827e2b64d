"""Training of small models: the tokenizer, the prompt mix with its held-out words, the loop."""
