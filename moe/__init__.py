"""Decentralized mixture of experts (Learning@home, arXiv:2002.04013): layers whose experts live on other nodes.

server      experts hosted here: answers forward and backward, and steps after each backward batch
gate        product-key scores, noise, and the loss that keeps experts evenly used
layer       RemoteMixtureOfExperts: an ordinary nn.Module
network     what the layer calls: finds experts and asks their hosts, in parallel, from any thread
bridge      from other threads into the event loop and back
search      the directory side: prefixes looked up and announced
keeping     snapshots, adoption and hand-over: the shell of protocols.experts.placement
model       a byte transformer whose feed-forward layers are remote mixtures
mode        all of it as one mode of a run
"""
