"""Let this process import libp2p's TCP, Noise and Yamux without the rest. Import before anything of libp2p.

`import libp2p` loads QUIC, WebSocket, TLS certificates, DHT, relay and pubsub: 1.2 s, half of what a question to a
node may take altogether. Without three `__init__.py` it is 0.5 s.
"""

from node.bare_packages import make_bare

make_bare("libp2p", "libp2p.network", "libp2p.transport")
