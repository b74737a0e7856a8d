"""Read what an adapter is registered from: its PEFT folder, its training examples, or a list of adapters."""
