"""models: what a base model's files describe: its shape, its context limit, whether it is quantised."""
