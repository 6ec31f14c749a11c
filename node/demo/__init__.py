"""The main job a person runs: six nodes on this machine train a model, some are killed, one joins, and it all adds up.

main            the story, from the run file to the verdict
plan            what is trained, and at which step each fault is due
scene           what one look at all nodes found
watching        starts nodes, looks at them, waits for what can be observed
faults          kill the lead while it holds work, kill a trainer, start one that joins late
accounts        who counted which microbatch, from the journals of decided records
comparison      the other side: the same run in one process (reference_process), and what is compared
figures         the result, its bounds, and a sentence for each one broken
screen          progress, for a terminal or for a log
planted         a node that counts one microbatch twice, so that everybody can see the demo notice
"""
