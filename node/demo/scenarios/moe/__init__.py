"""Five nodes train a byte transformer whose feed-forward layers are experts on the nodes; one host is killed, one node joins.

scenario            the story, from the run file to the verdict
plan                what is trained, and when which fault is due
sights              what one look at the nodes found
reference_process   in one process: the swarm's models on held-out text, and the same model trained on the same samples
figures             the result, its bounds, and a sentence for each one broken
"""
