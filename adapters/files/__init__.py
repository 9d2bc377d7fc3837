"""adapters.files: an adapter's files, opened, parsed and checked as untrusted input."""
