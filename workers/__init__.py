"""What runs inside a job's Ray actors: the methods, the pairs, the exchange, the loop.

Read in this order: plan (what is asked), methods (the arithmetic), optimizers, groups and schedules (the base step),
averaging (of the weights), pairs (who computes what), flat (where the numbers lie), data, mixing and task (what is
trained on; models, tasks, images and augment are built in), freezing, recompute and compiling (how a model is
prepared for it), gradient (one half of one shard), collective and exchange (how gradients travel), state and engine
(one step), generations (the protocol of who is in), coordinator and membership (its two sides), storage (where files
lie) and checkpoints, loop (one worker), marks (whether it sees the right storage), part (its part in a run), train_runs
(how Ray Train hosts it), crew (how many there are), trainer (all of a run), sharing, lobby and pool (many runs that
share warm workers), ledger (what it has cost), faults (what goes wrong on purpose). Nothing in this folder knows of
HTTP, stores or jobs.

plan, methods, optimizers, groups, averaging, schedules, tasks and models.choice load without torch, so that the
service can check a spec without loading it; so does storage, by which the service reads what runs have left.
"""
