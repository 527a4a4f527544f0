"""What runs inside a job's Ray actors: the methods, the pairs, the exchange, the loop.

Read in this order: plan (what is asked), methods (the arithmetic), optimizers and schedules (the base step),
pairs (who computes what), flat (where the numbers lie), data and task (what is trained on), collective and
exchange (how gradients travel), engine (one step), coordinator and membership (who is in), checkpoints, loop
(one worker), trainer (all of them, on Ray Train). Nothing in this folder knows of HTTP, stores or jobs.

plan, methods, optimizers, schedules and tasks load without torch, so that the service can check a spec
without loading it.
"""
