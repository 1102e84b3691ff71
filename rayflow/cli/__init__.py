"""The command line: `rayflow …`, and `python jobs/x.py …` through `rf.run`.

Commands parse, call the client or the API below, and print; they decide nothing about jobs. Modules are
imported when their command runs, so that `rayflow --help` is instant.
"""
