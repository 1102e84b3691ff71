"""The engines behind ports, without Ray: each is driven by `step(now)`, in production as in simulation.

| module | has |
|---|---|
| `job_master`, `master` | the engine that runs one job, and what it is made of |
| `subtask` | the engine of one subtask, over all its attempts |
| `assembly`, `parts`, `task` | makes what one attempt is built from; that; the attempt, running |
| `gate`, `intake`, `chain`, `emitter`, `outputs` | rows in, through the operators, and out |
| `source_driver`, `event_clock` | reads a source's splits; makes its watermarks |
| `input_clock` | how far event time has come at the input channels, and which inputs have ended |
| `barriers` | checkpoints: alignment, what is recorded, and when a snapshot is whole |
| `uploads` | an attempt's snapshots on their way to storage, and their acks |
| `snapshots`, `in_flight` | state, and rows in flight, to storage and back |
| `replay`, `catching_up` | rows in flight, processed first of all after a restore |
| `messages`, `mail`, `ports` | what the engines tell each other; a mailbox's; what they need from the world |
| `correspondence` | a subtask's control messages, each once and in order |
| `stepping`, `task_thread`, `accounting` | what a step tells its driver; the thread that drives; where its time goes |
| `memory`, `process_memory` | what a subtask's memory goes to, and shedding it; that of the process, and garbage |
| `faults`, `at_work` | what the master is told of a failure; which operator a thread is at |
| `clock`, `io_pool`, `event_loop` | ports as production has them |
| `local`, `local_transport` | the whole in one process |
"""
