"""From files of rows to batches of token ids.

Reads in this order: rows, formats, templates, encode, packing, collate; prepare joins them, ledger counts
them, preview shows them.
"""
