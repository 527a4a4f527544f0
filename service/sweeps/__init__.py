"""Sweeps: what is searched, what is suggested next, which trials end early.

Read in this order: spec (what is asked, and how its trials are numbered) with schedulers and rules, space (domains, and
how values enter a job) with checks (which spaces are refused), search (Tune's searchers) and schedule (Tune's
schedulers), study (both, driven by results in a fixed order), trials (between the study and the pool of workers) with
underway (one of them) and record (what is written down), and runner (the process). What a sweep suggests and decides is
a pure function of its spec and of its trials' results, so it is replayed from the store. At the end, report (the
answer), which reads results (what trials gave, made comparable), axes and smoother (the metric over the fields),
optimum (where it is best, and how sure that is), compare, tables, population and verdicts; plot (its picture), answer
(where both are kept) and promotion (jobs of what was found). Only runners load Ray, Optuna and scikit-learn.
"""
