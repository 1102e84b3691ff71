"""Real departures from New York in 2013 (data/README.md): mean and worst delay per airport and hour."""

import rayflow as rf
from rayflow import col


def build(
    env: rf.StreamEnvironment,
    *,
    input: str = "jobs/data/flights.parquet",
    output: str = "out/flight_delays",
) -> None:
    """Departure delays per airport and hour."""
    flights = env.read_parquet(input, watermark=rf.Watermark("departure", delay="2h"))
    (
        flights.filter(col("dep_delay").is_valid())
        .key_by("origin")
        .window(rf.Tumbling("1h"))
        .aggregate(
            flights=rf.count(),
            mean_delay=col("dep_delay").mean(),
            worst_delay=col("dep_delay").max(),
        )
        .write_parquet(output, if_exists="overwrite")
    )


if __name__ == "__main__":
    rf.run(build)
