"""The manifests of deploy/, judged without a cluster; needs what ``make test-deploy`` installs.

Read in this order: manifests (what kustomize makes of them, and the pods in it), schemas (what an API server would
refuse), rules (what the operator and Pod Security would), consistency and network (what would only show when it runs),
ray_options (what Ray itself thinks of it), judge (all of them). Each check is a function from manifests to faults, so
that test_mistakes can plant mistakes and see each one refused.
"""
