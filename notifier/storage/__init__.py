"""All SQL: one noun, one file; one function, one statement; `db` comes first."""
