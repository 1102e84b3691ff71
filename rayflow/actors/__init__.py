"""Ray and Arrow Flight: thin shells that run the engines of `rayflow.runtime` on a cluster.

The only package, with those above it, that imports ray.

| module | has |
|---|---|
| `job_manager_actor`, `standby`, `tenure` | the actor around a job master; its standby; who leads |
| `subtask_actor`, `lease`, `warm_up` | the actor around a subtask; its end without a manager; loading ahead |
| `ray_pool`, `launcher`, `spares`, `placement` | a job's workers: started, taken over, kept ready, spread |
| `flight`, `flight_input`, `flight_output`, `frame_codec` | the data plane |
| `output_capture`, `output_log` | what the processes print and log |
| `last_words`, `memory_watch` | what is known of a process that ended inside a user's function; its memory, watched |
| `object_store`, `holder_group`, `object_holder`, `holder_calls` | `rayobj://`: objects kept by groups of actors |
| `fault_agent` | faults on purpose, on the node where they happen |
| `specs`, `code_path` | what actors are started with; where user code is imported from |
"""
