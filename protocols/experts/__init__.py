"""Decentralized mixture of experts (Learning@home, arXiv:2002.04013): what is decided, without tensors, clock or network.

uid            the names of experts: places on a grid, and the prefixes under which the directory lists them
epoch          which of an expert's hosts, one after the other, is meant
spec           the `[moe]` table of a run file
messages       what nodes ask of each other's experts, and what their hosts state in the directory
view           which experts are alive where, as far as the directory has said lately
search         the beam search over that view, and which prefixes it still has to look up
lookups        which prefixes are looked up when
announcements  what this node writes into the directory
dispatch       how long to wait for whom, and whom to leave alone for a while
admission      which calls a host takes for its expert, by epoch and version
placement      which node hosts which expert, who keeps copies, who adopts orphans, and who gives way
assignment     the order of nodes that every node computes alike
evidence       what a node has seen of an expert, and which snapshots of it count
roster         who takes part, and whom a node can count on
events         what placement is told, and what it wants done
shelf          which snapshots a node keeps for others
"""
