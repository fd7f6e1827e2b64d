"""Cross-lingual in-context learning: reading answers, scoring, evaluation."""
