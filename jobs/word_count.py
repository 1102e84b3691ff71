"""Counts words in text files, as a running aggregate: an upsert stream with the last count per word."""

import re

import rayflow as rf

WORD = re.compile(r"[a-z][a-z'-]*[a-z]|[a-z]")


def words(line: str) -> list[str]:
    """Return the words of a line, in lower case."""
    return WORD.findall(line.lower())


def build(env: rf.StreamEnvironment, *, input: str = "README.md", output: str = "out/word_count") -> None:
    """How often each word occurs in the files of a folder, a glob, or one file."""
    (
        env.read_text(input)
        .flat_map(words, returns={"word": str})
        .key_by("word")
        .aggregate(count=rf.count())
        .write_parquet(output, mode="upsert", if_exists="overwrite")
    )


if __name__ == "__main__":
    rf.run(build)
