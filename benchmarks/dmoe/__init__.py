"""Convergence of a mixture of remote experts beside a dense network, in virtual time. See `benchmarks.dmoe_convergence`.

clock     trainers as threads of which one runs, and what comes later
network   experts behind a slow network that exists in virtual time only
trainers  one run: many asynchronous trainers of one model
cases     which runs there are, and their sizes
report    from runs to figures
plots     curves
"""
