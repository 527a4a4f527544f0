"""What people touch: HTTP, the command line, the Python client.

Read in this order: problems (the one shape of every error) with faults (what is wrong with a job, in
sentences), auth (the token), pages (cursors), jobs (the routes) with models (their answers) and stream
(server-sent events), bundles (the users' own code), health and metrics (for those who watch it) with
requests (what goes with each), app (all of it put together), serve (the process) with logs (what it says).
On the other side of the wire: client, then cli, jobfile (YAML) with presets (jobs that ship with sampa),
packing (a directory as a bundle) and follow (progress). Nothing in this folder loads torch or Ray.
"""
