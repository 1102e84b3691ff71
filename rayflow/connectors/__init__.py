"""Where records come from and go to: the built-in sources and sinks.

| module | has |
|---|---|
| `memory_sources` | sources that need no storage |
| `file_source`, `file_discovery` | files as sources; which files a path means |
| `parquet_reader`, `csv_reader`, `csv_skipping`, `line_readers` | readers of one part of a file |
| `file_sink` | files as a sink, exactly once |
| `append_files`, `upsert_files`, `staged_files` | its two ways to write, and what they share |
| `file_formats`, `json_lines` | rows as files, and back |
| `committed` | what a file sink has committed, read |
| `targets`, `filesystems` | storage to write to, storage to read from |
| `sql_sink` | tables of PostgreSQL and MariaDB as a sink |
| `sql_servers`, `sql_tables`, `sql_text` | what it needs: connections, tables, values as text |
| `http_sink` | POST requests as a sink |
| `extras` | what only some of these need to have installed |
| `collected`, `simple_sinks` | collecting rows; printing and discarding |
"""
