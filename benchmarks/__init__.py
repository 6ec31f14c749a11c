"""One module per measured claim: python -m benchmarks.NAME --json."""
