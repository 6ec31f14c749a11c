"""Cases that people argue about, as text: commands, and beneath each what happens.

`python -m tests.sim.pipeline.scenarios` plays them all; with `--rewrite` it writes down what happens now. A changed trace is a
changed protocol: accept it only when you understand why it changed. The commands: `play.Play.do`.
"""
