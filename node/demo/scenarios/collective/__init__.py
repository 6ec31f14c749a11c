"""The demo of mode `collective`: four peers train a language model and seldom speak; one is killed, one joins.

| module | what it does |
|---|---|
| plan | the run, and when what happens |
| sights | what a look at a node finds |
| scenario | the story |
| reference_process | the same tokens in one process |
| figures | the result and its bounds |
"""
