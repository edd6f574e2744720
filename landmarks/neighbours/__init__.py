"""Embeddings to answers: the nearest photos, the landmark that they agree on, and a better order of them."""
