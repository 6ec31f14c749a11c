"""p2pd, the go-libp2p transport: started, supervised and spoken to natively from trio."""
