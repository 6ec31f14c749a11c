"""What `murmura demo` can show: one package per mode, each with a `run(options)`."""
