"""What replicas keep in PostgreSQL: `ledger` takes it, `adding` adds it up where one leads, `answers` reads."""
