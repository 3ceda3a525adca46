"""Bulk jobs: tables of text into tables of vectors, exactly once per row, on many machines.

A job is planned once (``plan``), in shards. Whoever computes a shard (``shards``) commits it by
putting its file into the output (``stores``), whole and only if it is not there yet: its presence
is the commit. So work may be done twice, and rows are there once.
"""
