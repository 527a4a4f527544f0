"""What owns jobs and sweeps: their specs, states, store, queue, launching and recovery.

Read in this order: specs (what is asked) with fields (where a fault lies in it), states (the allowed moves), store
(the single truth) with rows (what its transactions are made of), sweep_table (sweeps and their trials) and census (how
much there is of what), bundles (the users' own code) with bundle_table (where it lies), launcher (Ray's Jobs API) with
room (what could ever fit) and shared (whether all see the same storage), local_ray (a Ray of our own), kube_launcher (a
Ray cluster for each attempt) with rayjob (what is asked of KubeRay) and kube (of whom), backends (which of these),
lease (which process reconciles), reconciler (what starts, watches and restarts) with troubles (what goes wrong for one
job), runner (the process of one job) with brought (its code) and told (how it is told to stop), and sweeps (searches).
Nothing in this folder knows of HTTP requests; nothing but the runners loads torch or Ray.
"""
