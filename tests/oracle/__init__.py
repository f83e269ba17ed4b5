"""An independent float64 brute force of the attribution maths, for the tests only.

Written from the specification alone (nothing here imports lorif_core): slow, obvious, one example at a time.
Axes: N train examples, Q queries, M retraining subsets, T tokens (positions), a = input side of a layer (with the
column of ones for the bias), b = output side, D = a * b the flattened layer gradient, r curvature rank, c factor rank.
Sign: a positive score is a proponent (training on the example lowers the query's loss).
"""
