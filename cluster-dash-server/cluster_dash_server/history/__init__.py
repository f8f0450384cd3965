"""History: a package for each kind that keeps it, `memory` for tests, and what all kinds share.

The kinds: `sqlite` (a file in the data folder), `remote` (an engine), `postgresql` (what replicas share).
"""
