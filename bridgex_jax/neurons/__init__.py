"""From activation statistics to sets of neurons, and how alike the sets of two languages are."""
