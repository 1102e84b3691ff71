"""The way in: submit a job to a Ray cluster, find jobs again, look at them and end them.

| module | has |
|---|---|
| `submitting` | `submit`: a job graph becomes a running job |
| `finding` | `connect`, `Client`: jobs by id or name |
| `handle` | `JobHandle`: one job, running or ended |
| `stored_job` | an ended job, as its metadata on storage tells it |
| `stores`, `removing` | object stores as seen from outside, `rayobj://` included; what `rayflow state rm` removes |
| `cleaning` | what sinks clean up later of a job that is over (`rayflow clean`) |
| `processes` | processes by pid and start time |
| `ray_session` | which Ray cluster this process talks to; a local one of its own where there is none |
| `local_cluster` | `rayflow cluster up`, `status`, `down` |
| `chaos` | faults injected into running jobs |
| `home`, `registry` | what is kept in the user's data folder |

Nothing here imports ray before it must talk to a cluster.
"""

from rayflow.client.finding import Client, connect
from rayflow.client.handle import JobHandle
from rayflow.client.submitting import submit

__all__ = ["Client", "JobHandle", "connect", "submit"]
