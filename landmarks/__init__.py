"""The rooms behind the doors: recognition.py, retrieval.py and the other commands at the root string them together."""
