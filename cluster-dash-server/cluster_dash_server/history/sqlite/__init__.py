"""History in a SQLite file: `store` is the one thread that writes; what it writes, how it ages, what is asked of it."""
