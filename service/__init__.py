"""What owns jobs and sweeps: their specs, states, store, queue, launching and recovery.

Read in this order: specs (what is asked) with fields (where a fault lies in it), states (the allowed moves), store
(the single truth) with rows (what its transactions are made of) and sweep_table (sweeps and their trials), bundles
(the users' own code) with bundle_table (where it lies), launcher (Ray's Jobs API) with room (what could ever fit),
reconciler (what starts, watches and restarts), runner (the process of one job) with told (how it is told to stop), and
sweeps (searches). Nothing in this folder knows of HTTP requests; nothing but the runners loads torch or Ray.
"""
