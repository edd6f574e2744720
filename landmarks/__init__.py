"""The rooms behind the doors: recognition.py, retrieval.py and the other commands at the root string them together."""


def __getattr__(name: str) -> str:
    if name == "__version__":  # which asks git, so not before somebody wants it
        from landmarks.running.version import version

        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
