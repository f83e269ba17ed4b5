"""The report of a `clean` run: one self-contained HTML page from plain data."""
