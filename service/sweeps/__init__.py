"""Sweeps: what is searched, what is suggested next, which trials end early.

Read in this order: spec (what is asked, and how its trials are numbered) with schedulers and rules, space (domains, and
how values enter a job) with checks (which spaces are refused), search (Tune's searchers) and schedule (Tune's
schedulers). What a sweep suggests and decides is a pure function of its spec and of its trials' results in a fixed
order, so it can be replayed from the store. Only search and schedule load Ray and Optuna, when they are used. At the
end, promotion makes jobs of what was found.
"""
