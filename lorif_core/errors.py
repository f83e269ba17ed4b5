"""The error of everything that can be wrong with an index on disk."""


class StoreError(ValueError):
    """An index is missing, damaged, being written, of another model, of other data, or made with other options."""
