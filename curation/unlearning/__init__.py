"""Unlearning: make a model forget some of its training rows, keep the rest, and show it."""
