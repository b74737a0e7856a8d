"""What an adapter is registered from: its PEFT folder, its training examples, and lists of adapters."""
