"""The dht process: hivemind's Kademlia node on the daemon's p2pd. Started by `node.dht.link`, never by hand.

    python -P -m node.dht.process --control-fd N --p2pd PATH --runtime-dir DIR

The only package that imports hivemind. It speaks `node.dht.messages` over an inherited socket and lives exactly as
long as that socket, its parent and p2pd do; whoever starts it again gives it a fresh p2pd to talk to.
"""
