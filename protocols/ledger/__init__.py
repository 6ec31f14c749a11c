"""The step ledger: who is in, what each peer has counted, and what a step commits. The promise: exactly once.

Read in this order: view (members, quorums, records), messages, tally (what one peer counted), member (agreement),
lead (who deals work and proposes), leases, journey (a trainer's microbatches), wiring (which replica to ask).
The protocol in prose, with what is promised in each failure: README.md beside this file.
"""
