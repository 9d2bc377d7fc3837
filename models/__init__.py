"""models: what a base model's files say: its shape, its context limit, whether it is quantised."""
