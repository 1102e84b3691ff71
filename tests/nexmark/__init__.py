"""NEXMark, proven: oracles in DuckDB, all queries in CI, and the full matrix as a command."""
