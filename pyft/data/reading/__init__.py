"""Bytes to records: files of every kind, in bounded memory."""
