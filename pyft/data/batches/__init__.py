"""Samples -> batches: split, order, packing, collation, streaming."""
