"""The model that ships with the package, an ordinary Hugging Face directory, and its recipe."""
