"""Decisions about training data: example tables, data and models, label errors, reports. Importing it loads no torch."""
