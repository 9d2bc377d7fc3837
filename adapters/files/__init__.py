"""adapters.files: an adapter's files, opened, parsed and checked as files nobody vouches for."""
