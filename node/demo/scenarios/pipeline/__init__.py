"""Six nodes train a pipeline on this machine, some are killed, one joins, and it all adds up.

scenario        the story, from the run file to the verdict
plan            what is trained, and at which step each fault is due
sights          what one look at the nodes found
faults          kill the lead while it holds work, kill a trainer, start one that joins late
accounts        who counted which microbatch, from the journals of decided records
comparison      the other side: the same run in one process (reference_process), and what is compared
figures         the result, its bounds, and a sentence for each one broken
planted         a node that counts one microbatch twice, so that everybody can see the demo notice
"""
