"""How a step is spread over processes: one process, replicated, sharded."""
