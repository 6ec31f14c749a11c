"""Eight peers, each with a whole model and a part of the data of its own, become as good as one that has seen everything.

scenario            the story, from the run file to the verdict
plan                what is trained, and when which fault is due
sights              what one look at the nodes found
reference_process   in one process: all data, each part alone, and the same swarm without the correction
simulated           the product's cores and arithmetic in virtual time, with the demo's events
figures             the result, its bounds, and a sentence for each one broken
"""
