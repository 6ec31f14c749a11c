"""The main job a person runs: nodes on this machine train a model, some are killed, one joins, and it all adds up.

main            dispatch to the scenario of a mode, and what surrounds every one of them
scenarios/      one per mode: the story, its faults, its proof and its bounds
scene           what one look at all nodes found
beside          a process that trains and tests for comparison
watching        starts nodes, looks at them, waits for what can be observed
screen          progress, for a terminal or for a log
"""
