"""What the node shows over HTTP: metrics, health, and a page. Imported only where `http_listen` switches it on."""
